/** How everything is: services, feed, nodes of the cache, and the views, each second. */

import { CacheNodeState, GenerationState, type Projection } from "../gen/commerce/projection/v1/projection_service_pb";
import { Heading } from "../heading";
import { countText } from "../words";
import { Bar, Sparkline } from "./drawings";
import { GENERATION_WORDS, type Look, PROJECTION_WORDS, looks, millisecondsOf, rateOf } from "./operators";
import { agoText, mebibytesText, millisecondsText, numberText } from "./words";

const LINE = 60;
const NODE_WORDS: Record<CacheNodeState, string> = {
  [CacheNodeState.UNSPECIFIED]: "unknown",
  [CacheNodeState.SERVING]: "serving",
  [CacheNodeState.FENCED]: "fenced",
  [CacheNodeState.STANDBY]: "on standby",
};

export function State({ words, kind }: { words: string; kind: "good" | "bad" | "warn" | "calm" }) {
  return <span class={`lamp ${kind}`}>{words}</span>;
}

export function Overview({ now }: { now: Look }) {
  const rate = rateOf((it) => it.head);
  const parked = now.views.reduce((sum, it) => sum + it.parkedKeys, 0);
  return (
    <>
      <Heading>Overview</Heading>
      {now.problems.map((it) => (
        <p key={it} role="alert" class="note bad">
          {it}
        </p>
      ))}
      <div class="panels">
        <section class="panel" aria-label="Services">
          <h2>Services</h2>
          <ul class="rows">
            {now.services.map((it) => (
              <li key={it.name} data-service={it.name}>
                <span class="grow">{it.name}</span>
                <State words={it.state} kind={it.state === "serving" ? "good" : "bad"} />
              </li>
            ))}
          </ul>
        </section>
        <section class="panel" aria-label="Feed">
          <h2>Feed</h2>
          <p class="figure">
            <strong data-head>{numberText(now.head)}</strong>
            <span class="muted">{rate === null ? "" : `${numberText(Math.round(rate))} events/s`}</span>
          </p>
          <Sparkline values={rates()} most={LINE} large />
        </section>
        <section class="panel" aria-label="Cache">
          <h2>Cache</h2>
          {now.nodes.length === 0 && <p class="muted">There is none: queries read the database.</p>}
          <ul class="rows">
            {now.nodes.map((it) => (
              <li key={it.node}>
                <span class="grow cut" title={it.problem || `${it.node}: room for ${mebibytesText(it.maxBytes)}`}>
                  {it.node}
                </span>
                <span class="muted small">
                  {it.problem ? "" : `${countText(it.entries, "entry", "entries")}, ${mebibytesText(it.bytes)}`}
                </span>
                <State words={NODE_WORDS[it.state]} kind={it.state === CacheNodeState.FENCED ? "bad" : it.state === CacheNodeState.SERVING ? "good" : "calm"} />
              </li>
            ))}
          </ul>
        </section>
      </div>
      <div class="bar">
        <h2>Views</h2>
        {parked > 0 && (
          <a href="#/parked" class="warned">
            {countText(parked, "row")} parked
          </a>
        )}
      </div>
      <div class="scrolls" tabIndex={0} role="region" aria-label="Views">
        <table class="dense">
          <thead>
            <tr>
              <th scope="col">View</th>
              <th scope="col" class="text">State</th>
              <th scope="col">Position</th>
              <th scope="col">Behind</th>
              <th scope="col">Lag</th>
              <th scope="col" class="text">Last minute</th>
              <th scope="col">Parked</th>
              <th scope="col">Differences</th>
              <th scope="col">Compared</th>
              <th scope="col" class="text">Other generation</th>
            </tr>
          </thead>
          <tbody>
            {now.views.map((it) => (
              <ViewRow key={it.view} view={it} now={now} />
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

function rates(): number[] {
  const last = looks.value.slice(-LINE - 1);
  return last.slice(1).map((it, index) => {
    const before = last[index] ?? it;
    return (Number(it.head - before.head) * 1_000) / Math.max(1, it.at - before.at);
  });
}

export function lagsOf(view: string, most: number): number[] {
  return looks.value.slice(-most).flatMap((look) => {
    const found = look.views.find((it) => it.view === view);
    return found ? [Number(found.lagEvents)] : [];
  });
}

export function stateKind(view: Projection): "good" | "bad" | "calm" {
  if (view.error) return "bad";
  return PROJECTION_WORDS[view.state] === "running" ? "good" : "calm";
}

function ViewRow({ view, now }: { view: Projection; now: Look }) {
  const generation = now.generations.get(view.view);
  const lag = millisecondsOf(view.lag);
  return (
    <tr data-view={view.view}>
      <th scope="row">
        <a href={`#/view/${view.view}`}>{view.view}</a>
      </th>
      <td class="text">
        <State words={view.error ? "stopped" : PROJECTION_WORDS[view.state]} kind={stateKind(view)} />
      </td>
      <td>{numberText(view.position)}</td>
      <td>{numberText(view.lagEvents)}</td>
      <td class={lag >= 60_000 ? "warned" : ""}>{millisecondsText(lag)}</td>
      <td class="text">
        <Sparkline values={lagsOf(view.view, LINE)} most={LINE} />
      </td>
      <td>{view.parkedKeys ? <a href="#/parked" class="warned">{numberText(view.parkedKeys)}</a> : "0"}</td>
      <td>{view.differences ? <a href="#/log" class="warned">{numberText(view.differences)}</a> : "0"}</td>
      <td class="muted">{agoText(view.auditedAt) || "not yet"}</td>
      <td class="text">
        {generation && (
          <>
            <span>{GENERATION_WORDS[generation.state]}</span>
            {generation.state === GenerationState.FILLING && now.head > 0n && (
              <Bar part={Number(generation.position) / Number(now.head)} label="How much of the feed is taken in" />
            )}
          </>
        )}
      </td>
    </tr>
  );
}
