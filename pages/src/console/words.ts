/** Numbers and times of operators: exact, and as wide as the ones before. */

import { type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";

const NUMBER = new Intl.NumberFormat();
const TIME = new Intl.DateTimeFormat(undefined, {
  dateStyle: "medium",
  timeStyle: "medium",
});

export function numberText(value: number | bigint): string {
  return NUMBER.format(value);
}

export function millisecondsText(milliseconds: number): string {
  if (milliseconds === 0) return "0 ms";
  if (milliseconds >= 60_000) return ageText(milliseconds);
  if (milliseconds >= 1_000) return `${(milliseconds / 1_000).toFixed(1)} s`;
  return `${milliseconds.toFixed(milliseconds < 100 ? 1 : 0)} ms`;
}

/** How long ago, or how long still. */
export function ageText(milliseconds: number): string {
  const units: [string, number][] = [
    ["d", 86_400_000],
    ["h", 3_600_000],
    ["min", 60_000],
  ];
  for (const [unit, length] of units) {
    if (milliseconds >= 2 * length) return `${Math.round(milliseconds / length)} ${unit}`;
  }
  return `${Math.max(0, Math.round(milliseconds / 1_000))} s`;
}

export function agoText(moment: Timestamp | undefined): string {
  return moment ? `${ageText(Date.now() - timestampMs(moment))} ago` : "";
}

/** With its milliseconds' fraction, as databases have it; timestampMs cuts it off. */
export function exactMilliseconds(moment: Timestamp | undefined): number | null {
  return moment ? Number(moment.seconds) * 1_000 + moment.nanos / 1_000_000 : null;
}

export function momentText(moment: Timestamp | undefined): string {
  return moment ? TIME.format(timestampMs(moment)) : "";
}

export function mebibytesText(bytes: bigint): string {
  return `${NUMBER.format(Math.round(Number(bytes) / 2 ** 20))} MiB`;
}
