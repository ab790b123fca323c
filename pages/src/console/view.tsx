/** One view: how it is, its other generation, and what can be done. */

import { type Generation, GenerationState } from "../gen/commerce/projection/v1/projection_service_pb";
import { Heading } from "../heading";
import { countText } from "../words";
import { comparisonText, dropGeneration, rebuild, redrive, switchTo } from "./actions";
import { Bar, Sparkline } from "./drawings";
import { Fact } from "./fact";
import { Findings } from "./log";
import { GENERATION_WORDS, type Look, PROJECTION_WORDS, millisecondsOf, rateOf } from "./operators";
import { State, lagsOf, stateKind } from "./overview";
import { ParkedRows } from "./parked";
import { ageText, agoText, millisecondsText, momentText, numberText } from "./words";

const LINE = 120;
const SWITCHABLE = [GenerationState.READY, GenerationState.KEPT];

export function View({ name, now }: { name: string; now: Look }) {
  const view = now.views.find((it) => it.view === name);
  const generation = now.generations.get(name);
  if (!view) return <Heading>There is no view {name}</Heading>;
  const rate = rateOf((look) => look.views.find((it) => it.view === name)?.position);
  return (
    <article aria-label={name}>
      <Heading>{name}</Heading>
      <p class="actions">
        <button type="button" disabled={generation !== undefined} onClick={() => rebuild(name)}>
          Rebuild …
        </button>
        {view.parkedKeys > 0 && (
          <button type="button" onClick={() => redrive(name)}>
            Redrive all parked rows …
          </button>
        )}
      </p>
      {view.error && (
        <p role="alert" class="note bad">
          It cannot go on: {view.error}
        </p>
      )}
      <div class="panels two">
        <section class="panel" aria-label="Served">
          <h2>Served</h2>
          <dl class="facts dense">
            <Fact name="State">
              <State words={view.error ? "stopped" : PROJECTION_WORDS[view.state]} kind={stateKind(view)} />
            </Fact>
            <Fact name="Position">
              {numberText(view.position)} of {numberText(now.head)}
            </Fact>
            <Fact name="Behind">
              {countText(view.lagEvents, "event")}, {millisecondsText(millisecondsOf(view.lag))}
            </Fact>
            <Fact name="Takes in">{rate === null ? "" : `${numberText(Math.round(rate))} events/s`}</Fact>
            <Fact name="Parked">{countText(view.parkedKeys, "row")}</Fact>
            <Fact name="Differences">{numberText(view.differences)} since the projector started</Fact>
            <Fact name="Compared">{agoText(view.auditedAt) || "not yet"}</Fact>
          </dl>
        </section>
        <section class="panel" aria-label="Lag">
          <h2>Lag, in events, of two minutes</h2>
          <Sparkline values={lagsOf(name, LINE)} most={LINE} large />
          <p class="muted small">At most {numberText(Math.max(0, ...lagsOf(name, LINE)))}.</p>
        </section>
      </div>
      {generation && <Other generation={generation} now={now} />}
      <ParkedRows view={name} count={view.parkedKeys} />
      <Findings view={name} count={view.differences} />
    </article>
  );
}

function Other({ generation: it, now }: { generation: Generation; now: Look }) {
  const part = now.head ? Number(it.position) / Number(now.head) : 1;
  const rate = rateOf((look) => look.generations.get(it.view)?.position);
  const missing = Number(now.head - it.position);
  const left = rate && missing > 0 ? ageText((missing / rate) * 1_000) : "";
  const isUnderWay = [GenerationState.REQUESTED, GenerationState.FILLING, GenerationState.COMPARING].includes(it.state);
  return (
    <section class="panel" aria-label="Other generation" data-generation={GENERATION_WORDS[it.state]}>
      <div class="bar">
        <h2>Other generation</h2>
        <p class="actions">
          {SWITCHABLE.includes(it.state) && (
            <button type="button" class="primary" onClick={() => switchTo(it)}>
              {it.state === GenerationState.KEPT ? "Go back to it …" : "Serve it …"}
            </button>
          )}
          <button type="button" onClick={() => dropGeneration(it)}>
            Drop it …
          </button>
        </p>
      </div>
      <dl class="facts dense">
        <Fact name="State">
          {GENERATION_WORDS[it.state]}
          {it.switchAsked && ", to be served as soon as it can be"}
          {it.dropAsked && ", to be dropped"}
        </Fact>
        <Fact name="Position">
          {numberText(it.position)} of {numberText(now.head)}
          {isUnderWay && rate !== null && `, ${numberText(Math.round(rate))} events/s`}
          {left && isUnderWay && `, ${left} left`}
        </Fact>
        <Fact name="Began">{momentText(it.beganAt)}</Fact>
        <Fact name="Waits">{it.error}</Fact>
        <Fact name="Parked">{it.parkedKeys ? countText(it.parkedKeys, "row") : ""}</Fact>
        <Fact name="Comparison">
          {it.comparison && `${comparisonText(it)}, at position ${numberText(it.comparison.position)}`}
        </Fact>
      </dl>
      {isUnderWay && <Bar part={part} label={`${Math.round(part * 100)} % of the feed is taken in`} />}
      {Boolean(it.comparison?.examples.length) && (
        <div class="scrolls" tabIndex={0} role="region" aria-label="Rows that differ">
          <table class="dense">
            <thead>
              <tr>
                <th scope="col">Row that differs</th>
                <th scope="col">Last event, served</th>
                <th scope="col">Last event, other</th>
              </tr>
            </thead>
            <tbody>
              {it.comparison?.examples.map((one) => (
                <tr key={one.key}>
                  <th scope="row">
                    <code>{one.key}</code>
                  </th>
                  <td>{one.servedPosition ? numberText(one.servedPosition) : "no row"}</td>
                  <td>{one.otherPosition ? numberText(one.otherPosition) : "no row"}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
