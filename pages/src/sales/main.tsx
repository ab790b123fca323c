/** What was sold: by day, and which products, as it is sold. */

import { createClient } from "@connectrpc/connect";
import { render } from "preact";

import { Banner } from "../banner";
import { transport } from "../calls";
import { QueryService } from "../gen/commerce/query/v1/query_service_pb";
import type { SalesSummary } from "../gen/commerce/query/v1/sales_pb";
import { Heading } from "../heading";
import { useQuery } from "../live";
import { adjust, route } from "../route";
import { countText, moneyText, problemText } from "../words";
import { Chart } from "./chart";

const queries = createClient(QueryService, transport);
const LOOK_EVERY_MILLISECONDS = 2_000;
const DAY_MILLISECONDS = 86_400_000;
const RANGES: [days: number, name: string][] = [
  [7, "Last 7 days"],
  [30, "Last 30 days"],
  [90, "Last 90 days"],
];
const MOST_DAYS = 366;

const isoDate = (moment: number) => new Date(moment).toISOString().slice(0, 10);

/** Every day from the first to the last, as in 2026-01-31. Empty where that is no range. */
export function daysOf(first: string, last: string): string[] {
  const begin = Date.parse(first);
  const count = Math.round((Date.parse(last) - begin) / DAY_MILLISECONDS) + 1;
  if (!(count > 0)) return [];
  return Array.from({ length: Math.min(count, MOST_DAYS) }, (_, it) => isoDate(begin + it * DAY_MILLISECONDS));
}

function Sales() {
  const { settings } = route.value;
  const today = isoDate(Date.now());
  const startDate = settings.get("from") ?? isoDate(Date.now() - 29 * DAY_MILLISECONDS);
  const endDate = settings.get("to") ?? today;
  const { answer, problem, isLoading } = useQuery(
    `${startDate} ${endDate}`,
    (consistency, signal) => queries.getSalesSummary({ startDate, endDate, topProducts: 10, consistency }, { signal }),
    { every: LOOK_EVERY_MILLISECONDS },
  );
  return (
    <>
      <header>
        <a class="brand" href="/sales">
          <img src="/icon.svg" alt="" width="28" height="28" />
          <span>Sales</span>
        </a>
        <nav aria-label="Pages">
          <a href="/">The shop</a>
        </nav>
      </header>
      <Banner />
      <main id="main">
        <div class="bar">
          <Heading>What was sold</Heading>
          <div class="inline">
            <label for="from">From</label>
            <input id="from" type="date" value={startDate} max={endDate} onChange={(it) => adjust({ from: it.currentTarget.value })} />
            <label for="to">to</label>
            <input id="to" type="date" value={endDate} min={startDate} onChange={(it) => adjust({ to: it.currentTarget.value })} />
          </div>
        </div>
        <p class="actions" role="group" aria-label="Range">
          {RANGES.map(([days, name]) => {
            const from = isoDate(Date.now() - (days - 1) * DAY_MILLISECONDS);
            const isShown = from === startDate && endDate === today;
            return (
              <button key={days} type="button" aria-pressed={isShown} onClick={() => adjust({ from, to: null })}>
                {name}
              </button>
            );
          })}
        </p>
        {problem && (
          <p role="alert" class="note bad">
            {problemText(problem)}
          </p>
        )}
        {answer && Boolean(answer.parkedRows) && (
          <p class="note bad">{countText(answer.parkedRows, "row")} could not be taken in: the sums lack them.</p>
        )}
        {answer?.summaries.length === 0 && <p class="empty">Nothing was sold on these days.</p>}
        <div aria-busy={isLoading}>
          {answer?.summaries.map((it) => (
            <Summary key={it.currencyCode} summary={it} days={daysOf(startDate, endDate)} />
          ))}
        </div>
      </main>
      <footer>
        <p>Days are those of UTC. The figures follow the orders by themselves.</p>
      </footer>
    </>
  );
}

function Summary({ summary, days }: { summary: SalesSummary; days: string[] }) {
  const { sold, cancelled } = summary;
  return (
    <section aria-label={`Sold in ${summary.currencyCode}`} class="summary">
      <dl class="figures">
        <Figure name="Revenue" value={moneyText(sold?.revenue)} />
        <Figure name="Orders" value={String(sold?.orderCount ?? 0n)} />
        <Figure name="Units" value={String(sold?.unitCount ?? 0n)} />
        <Figure name="Cancelled" value={`${cancelled?.orderCount ?? 0n} · ${moneyText(cancelled?.revenue)}`} />
      </dl>
      <h2>By day</h2>
      <Chart summary={summary} days={days} />
      <h2>Products that sold best</h2>
      <div class="scrolls" tabIndex={0} role="region" aria-label="Products that sold best">
        <table>
          <thead>
            <tr>
              <th scope="col">Product</th>
              <th scope="col">Orders</th>
              <th scope="col">Units</th>
              <th scope="col">Revenue</th>
            </tr>
          </thead>
          <tbody>
            {summary.topProducts.map((it) => (
              <tr key={it.productId}>
                <th scope="row">
                  <a href={`/#/product/${it.productId}`}>{it.productName}</a>
                </th>
                <td>{String(it.orderCount)}</td>
                <td>{String(it.unitCount)}</td>
                <td>{moneyText(it.revenue)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Figure({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

const page = document.getElementById("page");
if (page) render(<Sales />, page);
