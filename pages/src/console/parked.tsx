/** Rows that could not take an event in: which, why, what waits, and the event itself without what it tells of a person. */

import type { ParkedKey } from "../gen/commerce/projection/v1/projection_service_pb";
import { Heading } from "../heading";
import { useQuery } from "../live";
import { countText, problemText } from "../words";
import { dropParked, redrive } from "./actions";
import { EventShown } from "./event";
import { Fact } from "./fact";
import { EVERY_MILLISECONDS, asked, operators } from "./operators";
import { agoText, momentText, numberText } from "./words";

const MOST = 100;
const MOST_EVENTS = 20;

export function Parked() {
  return (
    <>
      <Heading>Parked rows</Heading>
      <p class="muted">
        A row that cannot take an event in waits with all that follows for it, while its view goes on. Mend the cause,
        then redrive.
      </p>
      <ParkedRows view="" count={1} />
    </>
  );
}

/** Of a view and its other generation, or of all. count: how many there are said to be; none are asked for where it is 0. */
export function ParkedRows({ view, count }: { view: string; count: number }) {
  const { answer, problem } = useQuery(
    count ? `parked ${view} ${asked.value}` : null,
    (_, signal) => operators.listParkedKeys({ view, pageSize: MOST }, { signal }),
    { every: EVERY_MILLISECONDS },
  );
  if (!count) return null;
  return (
    <section aria-label="Parked rows" aria-busy={!answer && !problem}>
      {view && <h2>Parked rows</h2>}
      {problem && <p role="alert" class="note bad">{problemText(problem)}</p>}
      {answer?.parkedKeys.length === 0 && <p class="empty">Nothing is parked.</p>}
      {answer && answer.parkedKeys.length > 0 && (
        <div class="scrolls" tabIndex={0} role="region" aria-label="Rows that are parked">
          <table class="dense">
            <thead>
              <tr>
                <th scope="col">Row</th>
                <th scope="col">Since event</th>
                <th scope="col">Waiting</th>
                <th scope="col">Parked</th>
                <th scope="col" class="text">Why</th>
                <th scope="col">
                  <span class="hidden">What can be done</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {answer.parkedKeys.map((it) => (
                <Row key={`${it.view} ${it.key}`} row={it} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {answer?.nextPageToken && <p class="muted">And more: the first {MOST} are shown.</p>}
    </section>
  );
}

function Row({ row }: { row: ParkedKey }) {
  return (
    <tr data-parked={row.key}>
      <th scope="row">
        <a href={`#/parked/${encodeURIComponent(row.view)}/${row.key}`}>
          {row.view} <code>{row.key}</code>
        </a>
      </th>
      <td>{numberText(row.since)}</td>
      <td>{numberText(row.waitingEvents)}</td>
      <td class="muted">{agoText(row.parkedAt)}</td>
      <td class="text cut" title={row.error}>
        {row.error}
      </td>
      <td>
        <button type="button" class="small" onClick={() => redrive(row.view, row.key)}>
          Redrive …<span class="hidden"> {row.key}</span>
        </button>
      </td>
    </tr>
  );
}

export function ParkedRow({ view, row }: { view: string; row: string }) {
  const { answer, problem } = useQuery(
    `${view} ${row} ${asked.value}`,
    (_, signal) => operators.getParkedKey({ view, key: row }, { signal }),
    { every: EVERY_MILLISECONDS },
  );
  const it = answer?.parkedKey;
  return (
    <article aria-label="A parked row" aria-busy={!answer && !problem}>
      <Heading>{view}</Heading>
      <p>
        <code>{row}</code>
      </p>
      {problem && (
        <p role="status" class="note">
          {problem.reason === "NOT_FOUND" ? "It is not parked." : problemText(problem)}
        </p>
      )}
      {it && !problem && (
        <>
          <p class="actions">
            <button type="button" class="primary" onClick={() => redrive(view, row)}>
              Redrive …
            </button>
            <button type="button" class="danger" onClick={() => dropParked(view, row)}>
              Drop what waits …
            </button>
          </p>
          <p class="note bad">{it.error}</p>
          <dl class="facts dense">
            <Fact name="Since event">
              <a href={`#/why/${it.since}`}>{numberText(it.since)}</a>
            </Fact>
            <Fact name="Parked">
              {momentText(it.parkedAt)}, {agoText(it.parkedAt)}
            </Fact>
            <Fact name="Waiting">{countText(it.waitingEvents, "event")}</Fact>
          </dl>
          <div class="panels two">
            <section class="panel" aria-label="What waits">
              <h2>What waits, in order</h2>
              <ol class="rows">
                {answer.events.slice(0, MOST_EVENTS).map((one) => (
                  <li key={String(one.position)}>
                    <a href={`#/why/${one.position}`}>{numberText(one.position)}</a>
                    <span>{one.kind}</span>
                  </li>
                ))}
              </ol>
              {it.waitingEvents > MOST_EVENTS && (
                <p class="muted">And {numberText(it.waitingEvents - BigInt(MOST_EVENTS))} more.</p>
              )}
            </section>
            <EventShown position={it.since} />
          </div>
        </>
      )}
    </article>
  );
}
