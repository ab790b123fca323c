/** Where a write is: by its token, its request id, a row's key or a position, as a way in time and view by view. */

import { Code } from "@connectrpc/connect";

import { problemOf } from "../calls";
import type { GetReceiptResponse } from "../gen/commerce/command/v1/receipt_service_pb";
import {
  CachedState,
  type ExplainResponse,
  type ExplainedView,
} from "../gen/commerce/projection/v1/projection_service_pb";
import { Heading } from "../heading";
import { useQuery } from "../live";
import { go } from "../route";
import { problemText } from "../words";
import { type Step, Way } from "./drawings";
import { Content } from "./event";
import { Fact } from "./fact";
import { EVERY_MILLISECONDS, operators, receipts } from "./operators";
import { State } from "./overview";
import { exactMilliseconds, momentText, numberText } from "./words";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const MOST_POSITION = 2n ** 63n;
const CACHED_WORDS: Record<CachedState, string> = {
  [CachedState.UNSPECIFIED]: "",
  [CachedState.CURRENT]: "current",
  [CachedState.OTHER]: "being replaced",
  [CachedState.ABSENT]: "not there",
  [CachedState.FENCED]: "node fenced",
};

interface Found {
  receipt: GetReceiptResponse | null;
  explained: ExplainResponse | null;
}

/** What `tandem why` finds, in the same order. */
async function find(what: string, signal: AbortSignal): Promise<Found> {
  const explain = (of: Parameters<typeof operators.explain>[0]["of"]) => operators.explain({ ...(of && { of }), withoutPersonalData: true }, { signal });
  if (/^\d+$/.test(what)) {
    const position = BigInt(what);
    const value = position < MOST_POSITION ? position : MOST_POSITION;
    return { receipt: null, explained: await explain({ case: "position", value }) };
  }
  if (!UUID.test(what)) return { receipt: null, explained: await explain({ case: "consistencyToken", value: what }) };
  try {
    const receipt = await receipts.getReceipt({ requestId: what }, { signal });
    if (receipt.refusal) return { receipt, explained: null };
    return { receipt, explained: await explain({ case: "position", value: receipt.position }) };
  } catch (error) {
    if (problemOf(error).code !== Code.NotFound) throw error;
    return { receipt: null, explained: await explain({ case: "key", value: what }) };
  }
}

export function Why({ what }: { what: string }) {
  const { answer, problem, isLoading } = useQuery(what || null, (_, signal) => find(what, signal), {
    every: EVERY_MILLISECONDS,
  });
  return (
    <>
      <Heading>Where is a write?</Heading>
      <form
        class="asked"
        onSubmit={(it) => {
          it.preventDefault();
          const typed = String(new FormData(it.currentTarget).get("what") ?? "").trim();
          if (typed) go(`/why/${encodeURIComponent(typed)}`);
        }}
      >
        <label for="what">A consistency token, a request id, an order's id or another row's key, or a position</label>
        <div class="inline">
          <input id="what" name="what" key={what} defaultValue={what} autocomplete="off" spellcheck={false} />
          <button type="submit" class="primary">
            Look
          </button>
        </div>
      </form>
      <div aria-busy={isLoading}>
        {problem && (
          <p role="alert" class="note bad">
            {problem.code === Code.NotFound ? "Nothing is known of it." : `${problemText(problem)}.`}
          </p>
        )}
        {answer?.receipt?.refusal && (
          <p class="note bad">
            Refused on {momentText(answer.receipt.storedAt)} ({answer.receipt.refusal.reason}): {answer.receipt.refusal.message}.
            Nothing was done.
          </p>
        )}
        {!problem && answer?.explained && <Explained it={answer.explained} />}
      </div>
    </>
  );
}

/** Views that the event concerns, and those that do not have it yet. */
export function concerned(it: ExplainResponse): ExplainedView[] {
  return it.views.filter((one) => one.keys.length > 0 || !one.included);
}

/** Whether nothing more will come: each view that it concerns has it, and has announced it. */
export function isComplete(it: ExplainResponse): boolean {
  const views = concerned(it);
  return views.length > 0 && views.every((one) => one.included && one.announcedBy);
}

/** What the databases and the projector recorded of an event, in milliseconds since `zero`, in order. */
export function stepsOf(it: ExplainResponse, zero: number): Step[] {
  const stored = exactMilliseconds(it.storedAt);
  const steps: Step[] = [
    {
      track: "write",
      name: "Stored",
      detail: `event ${it.event?.position} ${it.event?.type}`,
      at: stored === null ? null : stored - zero,
    },
  ];
  const views = concerned(it);
  const add = (name: string, at: (view: ExplainedView) => number | null) => {
    const byTime = new Map<number, string[]>();
    for (const view of views) {
      const moment = at(view);
      if (moment !== null) byTime.set(moment, [...(byTime.get(moment) ?? []), view.view]);
    }
    for (const [moment, names] of byTime) {
      steps.push({ track: "read", name, detail: names.join(", "), at: moment - zero });
    }
  };
  add("Projected", (view) => exactMilliseconds(view.changedAt));
  add("Announced", (view) => exactMilliseconds(view.announcedBy));
  return steps.sort((a, b) => (a.at ?? 0) - (b.at ?? 0));
}

function Explained({ it }: { it: ExplainResponse }) {
  const { event } = it;
  const envelope = event?.envelope;
  const steps = stepsOf(it, exactMilliseconds(it.storedAt) ?? 0);
  return (
    <>
      <h2>
        Event {numberText(event?.position ?? 0n)} {event?.type}
      </h2>
      {it.unreachable.map((one) => (
        <p key={one.store} class="note bad">
          It is not known whether it is in the views: {one.problem}.
        </p>
      ))}
      <Way steps={steps} label="Its way, in milliseconds since it was stored" />
      <div class="scrolls" tabIndex={0} role="region" aria-label="View by view">
        <table class="dense">
          <thead>
            <tr>
              <th scope="col">View</th>
              <th scope="col">Rows</th>
              <th scope="col" class="text">Taken in</th>
              <th scope="col" class="text">Cache</th>
              <th scope="col" class="text">Announced</th>
              <th scope="col" class="text">Waits for</th>
            </tr>
          </thead>
          <tbody>
            {concerned(it).map((one) => (
              <tr key={one.view} data-explained={one.view}>
                <th scope="row">
                  <a href={`#/view/${one.view}`}>{one.view}</a>
                </th>
                <td>{one.keys.length}</td>
                <td class="text">
                  <State words={one.included ? "yes" : `no, is at ${one.position}`} kind={one.included ? "good" : "warn"} />
                </td>
                <td class="text">{CACHED_WORDS[one.cached]}</td>
                <td class="text">{momentText(one.announcedBy)}</td>
                <td class="text">
                  {one.waitingFor}
                  {one.parkedKeys.map((row) => (
                    <a key={row.key} href={`#/parked/${encodeURIComponent(row.view)}/${row.key}`}>
                      {" "}
                      {row.key} is parked since {String(row.since)}
                    </a>
                  ))}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <div class="panels two">
        <section class="panel" aria-label="Who caused it">
          <h2>Who caused it</h2>
          <dl class="facts dense">
            <Fact name="Stored">{momentText(it.storedAt)}</Fact>
            <Fact name="By">{envelope?.actor}</Fact>
            <Fact name="Request">{envelope?.requestId && <code>{envelope.requestId}</code>}</Fact>
            <Fact name="In answer to">{envelope?.causationId && <code>{envelope.causationId}</code>}</Fact>
            <Fact name="Part of">{envelope?.correlationId && <code>{envelope.correlationId}</code>}</Fact>
            <Fact name="Trace">{envelope?.traceparent && <code>{envelope.traceparent}</code>}</Fact>
          </dl>
        </section>
        <section class="panel" aria-label="The event">
          <h2>The event</h2>
          {event && <Content event={event} />}
        </section>
      </div>
    </>
  );
}
