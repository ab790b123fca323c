/** What operators asked of views and what became of it, and what the auditor found to differ from the feed. */

import { FindingKind } from "../gen/commerce/projection/v1/projection_service_pb";
import { Heading } from "../heading";
import { useQuery } from "../live";
import { countText, problemText } from "../words";
import { EVERY_MILLISECONDS, asked, operators } from "./operators";
import { agoText, momentText, numberText } from "./words";

const MOST = 100;
const FINDING_WORDS: Record<FindingKind, string> = {
  [FindingKind.UNSPECIFIED]: "unknown",
  [FindingKind.ROW]: "another row",
  [FindingKind.MISSING]: "no row",
  [FindingKind.EXTRA]: "a row too many",
  [FindingKind.ENTRY]: "another entry in the cache",
  [FindingKind.EVENT]: "an event cannot be taken in",
};

export function Log() {
  const { answer, problem } = useQuery(
    `operations ${asked.value}`,
    (_, signal) => operators.listOperations({ pageSize: MOST }, { signal }),
    { every: EVERY_MILLISECONDS },
  );
  return (
    <>
      <Heading>Log</Heading>
      <Findings view="" count={1n} />
      <section aria-label="What operators asked" aria-busy={!answer && !problem}>
        <h2>What operators asked</h2>
        {problem && <p role="alert" class="note bad">{problemText(problem)}</p>}
        {answer?.operations.length === 0 && <p class="empty">Nothing was asked.</p>}
        {answer && answer.operations.length > 0 && (
          <div class="scrolls" tabIndex={0} role="region" aria-label="Operations">
            <table class="dense">
              <thead>
                <tr>
                  <th scope="col">Asked</th>
                  <th scope="col" class="text">By</th>
                  <th scope="col" class="text">What</th>
                  <th scope="col" class="text">View and row</th>
                  <th scope="col" class="text">Became</th>
                  <th scope="col" class="text">Why</th>
                </tr>
              </thead>
              <tbody>
                {answer.operations.map((it) => (
                  <tr key={it.operationId}>
                    <th scope="row" title={momentText(it.askedAt)}>
                      {agoText(it.askedAt)}
                    </th>
                    <td class="text">{it.actor}</td>
                    <td class="text">{it.action}</td>
                    <td class="text">
                      {it.view} <code>{it.key || "all"}</code>
                    </td>
                    <td class="text">
                      {!it.doneAt && "not done yet: "}
                      {countText(it.keys, "row")}, {countText(it.events, "event")}
                      {it.failedKeys > 0n && `, ${countText(it.failedKeys, "row stays", "rows stay")} parked`}
                    </td>
                    <td class="text">{it.reason}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        )}
      </section>
    </>
  );
}

/** count: how many there are said to be; none are asked for where it is 0. */
export function Findings({ view, count }: { view: string; count: bigint }) {
  const { answer, problem } = useQuery(
    count ? `findings ${view} ${asked.value}` : null,
    (_, signal) => operators.listFindings({ view }, { signal }),
    { every: EVERY_MILLISECONDS },
  );
  if (!count) return null;
  return (
    <section aria-label="What the auditor found" aria-busy={!answer && !problem}>
      <h2>What the auditor found</h2>
      {problem && <p role="alert" class="note bad">{problemText(problem)}</p>}
      {answer?.findings.length === 0 && <p class="empty">Nothing differs from the feed.</p>}
      {answer && answer.findings.length > 0 && (
        <div class="scrolls" tabIndex={0} role="region" aria-label="Findings">
          <table class="dense">
            <thead>
              <tr>
                <th scope="col">Found</th>
                <th scope="col" class="text">View and row</th>
                <th scope="col" class="text">What is there</th>
                <th scope="col">Last event</th>
                <th scope="col" class="text">About</th>
                <th scope="col" class="text">Made right</th>
              </tr>
            </thead>
            <tbody>
              {answer.findings.map((it, index) => (
                <tr key={index} data-finding={it.key}>
                  <th scope="row" title={momentText(it.foundAt)}>
                    {agoText(it.foundAt)}
                  </th>
                  <td class="text">
                    {it.view} <code>{it.key}</code>
                  </td>
                  <td class="text">{FINDING_WORDS[it.kind]}</td>
                  <td>{it.position ? <a href={`#/why/${it.position}`}>{numberText(it.position)}</a> : ""}</td>
                  <td class="text">{it.error || it.columns.join(", ")}</td>
                  <td class="text">{it.repaired ? "yes" : <span class="warned">no</span>}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
