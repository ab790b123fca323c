/**
 * A picture of the lag: places a real order, and draws its way as this browser, the databases and the projector saw it.
 *
 * Nothing is estimated: what nobody recorded is not drawn.
 */

import { createClient } from "@connectrpc/connect";
import { signal } from "@preact/signals";

import { newId, problemOf, transport } from "../calls";
import { CommandService } from "../gen/commerce/command/v1/command_service_pb";
import type { ExplainResponse } from "../gen/commerce/projection/v1/projection_service_pb";
import { ProductSort, QueryService } from "../gen/commerce/query/v1/query_service_pb";
import { Heading } from "../heading";
import { orderName, problemText } from "../words";
import { type Step, Way } from "./drawings";
import { operators } from "./operators";
import { isComplete, stepsOf } from "./why";
import { exactMilliseconds, millisecondsText } from "./words";

const commands = createClient(CommandService, transport);
const queries = createClient(QueryService, transport);

const CUSTOMER = "tandem.lag_customer";
const WAIT_SECONDS = 5n;
const LOOK_MILLISECONDS = 50;
const MOST_LOOKS = 100;
const KEPT = 10;

interface Run {
  orderId: string;
  product: string;
  token: string;
  /** In milliseconds since the click, by this browser's clock. */
  acknowledged: number;
  readBack: number;
  steps: Step[];
  stored: number | null;
  announced: number | null;
  /** How far the databases' clock is from this browser's, where it is clear that they differ. */
  apart: number;
  isCancelled: boolean;
}

/** The newest first. */
const runs = signal<Run[]>([]);
const doing = signal("");
const failure = signal("");

async function customer(): Promise<string> {
  const known = localStorage.getItem(CUSTOMER);
  if (known) return known;
  const customerId = newId();
  const address = { recipient: "A picture of the lag", street: "1 Measure Lane", city: "Bern", postalCode: "3000", countryCode: "CH" };
  await commands.registerCustomer({ requestId: newId(), customerId, name: "A picture of the lag", address });
  localStorage.setItem(CUSTOMER, customerId);
  return customerId;
}

async function run(): Promise<void> {
  failure.value = "";
  try {
    doing.value = "Choosing a product …";
    const customerId = await customer();
    const filter = { inStock: true };
    const { hits } = await queries.searchProducts({ filter, sort: ProductSort.PRICE_ASC, pageSize: 1 });
    const product = hits[0]?.product;
    if (!product) throw new Error("nothing in the shop is in stock");
    doing.value = "Placing the order …";
    const orderId = newId();
    const clicked = performance.now();
    const order = { requestId: newId(), orderId, customerId, lines: [{ productId: product.productId, quantity: 1 }] };
    const { receipt } = await commands.placeOrder(order);
    const acknowledged = performance.now() - clicked;
    const token = receipt?.consistencyToken ?? "";
    const requirement = { case: "atLeastAsFresh", value: token } as const;
    await queries.getOrderDetails({ orderId, consistency: { requirement, maxWait: { seconds: WAIT_SECONDS } } });
    const readBack = performance.now() - clicked;
    doing.value = "Asking what became of it …";
    const explained = await explain(token);
    const times = { acknowledged, readBack, clickedAt: performance.timeOrigin + clicked };
    runs.value = [{ orderId, product: product.name, token, isCancelled: false, ...drawn(times, explained) }, ...runs.value].slice(0, KEPT);
  } catch (error) {
    failure.value = problemText(problemOf(error));
  } finally {
    doing.value = "";
  }
}

/** Once all views that it concerns have announced it, or that takes too long: then what is there. */
async function explain(token: string): Promise<ExplainResponse> {
  for (let looks = 1; ; looks += 1) {
    const explained = await operators.explain({ of: { case: "consistencyToken", value: token } });
    if (isComplete(explained) || looks === MOST_LOOKS) return explained;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MILLISECONDS));
  }
}

interface Times {
  acknowledged: number;
  readBack: number;
  /** By this browser's clock. */
  clickedAt: number;
}

function drawn({ acknowledged, readBack, clickedAt }: Times, explained: ExplainResponse) {
  // An order is stored between the click and the receipt. Where the clocks say otherwise they are not the same, and the
  // databases' times are drawn as if it was stored when it was acknowledged.
  const stored = exactMilliseconds(explained.storedAt) ?? clickedAt;
  const isBetween = stored >= clickedAt && stored <= clickedAt + acknowledged;
  const apart = isBetween ? 0 : stored - (clickedAt + acknowledged);
  const recorded = stepsOf(explained, clickedAt + apart);
  const announced = recorded.filter((it) => it.name === "Announced").map((it) => it.at ?? 0);
  const steps: Step[] = [
    { track: "browser", name: "Sent", detail: "by this browser", at: 0 },
    { track: "browser", name: "Acknowledged", detail: "its receipt, with a token, is in this browser", at: acknowledged },
    { track: "browser", name: "Read back", detail: "a query with that token is answered in this browser", at: readBack },
    ...recorded,
  ];
  steps.sort((a, b) => (a.at ?? 0) - (b.at ?? 0));
  const storedAt = recorded.find((it) => it.name === "Stored")?.at ?? null;
  return { acknowledged, readBack, steps, apart, stored: storedAt, announced: announced.length ? Math.max(...announced) : null };
}

async function cancel(orderId: string): Promise<void> {
  failure.value = "";
  try {
    await commands.cancelOrder({ requestId: newId(), orderId, reason: "It was placed for a picture" });
    runs.value = runs.value.map((it) => (it.orderId === orderId ? { ...it, isCancelled: true } : it));
  } catch (error) {
    failure.value = problemText(problemOf(error));
  }
}

export function Lag() {
  const [newest, ...before] = runs.value;
  return (
    <>
      <Heading>A picture of the lag</Heading>
      <p class="muted">
        Places a real order of one piece of the cheapest product in stock, and draws its way, step by step. Cancel it
        afterwards, and the stock is as it was.
      </p>
      <p class="actions">
        <button type="button" class="primary" disabled={doing.value !== ""} onClick={() => void run()}>
          Place an order
        </button>
        <span role="status" class="muted">
          {doing.value}
        </span>
      </p>
      {failure.value && (
        <p role="alert" class="note bad">
          {failure.value}.
        </p>
      )}
      {newest && (
        <section aria-label="The last order">
          <div class="bar">
            <h2>
              Order <a href={`#/why/${newest.orderId}`}>{orderName(newest.orderId)}</a> of {newest.product}
            </h2>
            <button type="button" disabled={newest.isCancelled} onClick={() => void cancel(newest.orderId)}>
              {newest.isCancelled ? "Cancelled" : "Cancel the order"}
            </button>
          </div>
          <Way steps={newest.steps} label="Its way, in milliseconds since the click" />
          <p class="muted small">
            <span class="key browser" /> this browser <span class="key write" /> the write database{" "}
            <span class="key read" /> the read database and the projector. A database's time is when its transaction
            began.{" "}
            {newest.apart
              ? `Its clock and this browser's are ${millisecondsText(Math.abs(newest.apart))} apart or more: its times are drawn as if the order was stored when it was acknowledged.`
              : "The clocks agree that the order was stored between the click and its receipt."}
          </p>
        </section>
      )}
      {before.length > 0 && newest && (
        <div class="scrolls" tabIndex={0} role="region" aria-label="The orders before">
          <table class="dense">
            <thead>
              <tr>
                <th scope="col">Order</th>
                <th scope="col">Stored</th>
                <th scope="col">Acknowledged</th>
                <th scope="col">Announced</th>
                <th scope="col">Read back</th>
              </tr>
            </thead>
            <tbody>
              {[newest, ...before].map((it) => (
                <tr key={it.orderId}>
                  <th scope="row">
                    <a href={`#/why/${it.orderId}`}>{orderName(it.orderId)}</a>
                  </th>
                  {[it.stored, it.acknowledged, it.announced, it.readBack].map((at, index) => (
                    <td key={index}>{at === null ? "" : millisecondsText(at)}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </>
  );
}
