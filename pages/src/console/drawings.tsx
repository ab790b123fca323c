/** Lines of numbers and ways in time, drawn as SVG: the numbers themselves stand beside them, as text. */

import { millisecondsText } from "./words";

const WIDTH = 120;
const HEIGHT = 24;

/** The last values, the newest at the right; the highest at the top. */
export function Sparkline({ values, most, large = false }: { values: number[]; most: number; large?: boolean }) {
  const highest = Math.max(1, ...values);
  const step = WIDTH / Math.max(1, most - 1);
  const from = WIDTH - (values.length - 1) * step;
  const y = (value: number) => HEIGHT - 1.5 - (value / highest) * (HEIGHT - 3);
  const points = values.map((it, index) => `${(from + index * step).toFixed(1)},${y(it).toFixed(1)}`);
  return (
    <svg
      class={large ? "sparkline large" : "sparkline"}
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      <line x1="0" y1={HEIGHT - 1} x2={WIDTH} y2={HEIGHT - 1} />
      {points.length > 1 && <polyline points={points.join(" ")} />}
    </svg>
  );
}

export function Bar({ part, label }: { part: number; label: string }) {
  return (
    <svg class="part" viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label={label}>
      <rect class="all" width="100" height="4" />
      <rect class="done" width={100 * Math.min(1, Math.max(0, part))} height="4" />
    </svg>
  );
}

/** A step on the way of an event. `at` is in milliseconds; null where it is known that it happened, and not when. */
export interface Step {
  track: string;
  name: string;
  detail: string;
  at: number | null;
}

/** Steps in time, one below the other, from 0 to the last. */
export function Way({ steps, label }: { steps: Step[]; label: string }) {
  const last = Math.max(1, ...steps.map((it) => it.at ?? 0));
  return (
    <ol class="way" aria-label={label}>
      {steps.map((it, index) => {
        const x = it.at === null ? null : 1 + (98 * it.at) / last;
        return (
          <li key={index} data-step={it.name} data-at={it.at ?? ""} class={`track ${it.track}`}>
            <span class="name">{it.name}</span>
            <span class="at">{it.at === null ? "—" : millisecondsText(it.at)}</span>
            <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
              <line x1="0" y1="5" x2="100" y2="5" />
              {x !== null && <rect class="until" x="1" y="4" width={x - 1} height="2" />}
              {x !== null && <rect class="mark" x={Math.min(99.2, x - 0.4)} y="1" width="0.8" height="8" />}
            </svg>
            <span class="muted small">{it.detail}</span>
          </li>
        );
      })}
    </ol>
  );
}
