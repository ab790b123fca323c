/** Queries that a component shows: asked again until they are answered, and as long as the answer is old. */

import { Code } from "@connectrpc/connect";
import { useEffect, useRef, useState } from "preact/hooks";

import { type Problem, conditionOf, passes, pause, problemOf, read, report } from "./calls";
import type { Consistency } from "./gen/commerce/type/v1/consistency_pb";

export interface Shown<T> {
  answer: T | undefined;
  /** What asking again does not mend. */
  problem: Problem | null;
  isLoading: boolean;
}

export interface Timing {
  /** Waits so long before it asks: for what is typed. */
  delay?: number;
  /** Asks again so often while the page is seen. */
  every?: number;
}

type Ask<T> = (consistency: Consistency, signal: AbortSignal) => Promise<T>;

/** The answer to a query, kept while a changed one is asked. `key` says what is asked; null asks nothing. */
export function useQuery<T>(key: string | null, ask: Ask<T>, { delay = 0, every = 0 }: Timing = {}): Shown<T> {
  const [shown, show] = useState<Shown<T>>({ answer: undefined, problem: null, isLoading: key !== null });
  const latest = useRef(ask);
  latest.current = ask;
  useEffect(() => {
    if (key === null) {
      show({ answer: undefined, problem: null, isLoading: false });
      return undefined;
    }
    const stop = new AbortController();
    show((it) => ({ ...it, isLoading: true }));
    const begin = setTimeout(() => void follow(latest, stop.signal, every, show), delay);
    return () => {
      clearTimeout(begin);
      stop.abort();
    };
  }, [key]);
  return shown;
}

async function follow<T>(
  latest: { current: Ask<T> },
  stopped: AbortSignal,
  every: number,
  show: (change: (before: Shown<T>) => Shown<T>) => void,
): Promise<void> {
  const owner = {};
  let attempt = 0;
  try {
    while (!stopped.aborted) {
      try {
        const { value, isOld } = await read((consistency) => latest.current(consistency, stopped));
        if (stopped.aborted) return;
        report(owner, isOld ? "behind" : null);
        show(() => ({ answer: value, problem: null, isLoading: false }));
        if (!isOld && !every) return;
        attempt = isOld ? attempt + 1 : 0;
      } catch (error) {
        const problem = problemOf(error);
        if (stopped.aborted || problem.code === Code.Canceled) return;
        if (!passes(problem)) {
          report(owner, null);
          show((before) => ({ ...before, problem, isLoading: false }));
          return;
        }
        report(owner, conditionOf(problem));
        attempt += 1;
      }
      if (attempt) await pause(attempt, stopped);
      else await untilSeen(every, stopped);
    }
  } finally {
    report(owner, null);
  }
}

async function untilSeen(milliseconds: number, stopped: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    stopped.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
  while (document.hidden && !stopped.aborted) {
    await new Promise<void>((resolve) => {
      document.addEventListener("visibilitychange", () => resolve(), { once: true });
      stopped.addEventListener("abort", () => resolve(), { once: true });
    });
  }
}
