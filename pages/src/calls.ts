/** How the pages call the servers: over gRPC-Web, with a session that sees its own writes, and errors as words. */

import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { computed, signal } from "@preact/signals";

import { type Consistency, ConsistencySchema } from "./gen/commerce/type/v1/consistency_pb";
import { BadRequestSchema, ErrorInfoSchema, PreconditionFailureSchema } from "./gen/google/rpc/error_details_pb";

/** A sign-in page puts an access token there; without one, calls say nothing of who calls. */
const ACCESS_TOKEN = "tandem.access_token";
const CONSISTENCY_TOKEN = "tandem.consistency_token";
const CALL_MILLISECONDS = 10_000;
/** How long a query waits for its view before an older state is shown. */
const WAIT_MILLISECONDS = 700;

export function accessToken(): string {
  return sessionStorage.getItem(ACCESS_TOKEN) ?? "";
}

/** Empty to be nobody again. */
export function setAccessToken(token: string): void {
  if (token) sessionStorage.setItem(ACCESS_TOKEN, token);
  else sessionStorage.removeItem(ACCESS_TOKEN);
}

const identify: Interceptor = (next) => (request) => {
  const token = accessToken();
  if (token) request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};

export const transport = createGrpcWebTransport({
  baseUrl: location.origin,
  interceptors: [identify],
  defaultTimeoutMs: CALL_MILLISECONDS,
});

/** A UUIDv7 (RFC 9562), for a command or for what it creates: the milliseconds, and then 74 random bits of a UUIDv4. */
export function newId(): string {
  const milliseconds = Date.now().toString(16).padStart(12, "0");
  return `${milliseconds.slice(0, 8)}-${milliseconds.slice(8)}-7${crypto.randomUUID().slice(15)}`;
}

// ---- Errors

export interface Violation {
  field: string;
  words: string;
}

/** What went wrong, as the server said it. `reason` is empty where no server of Tandem said anything. */
export interface Problem {
  code: Code;
  reason: string;
  violations: Violation[];
  message: string;
}

export function problemOf(error: unknown): Problem {
  const failed = ConnectError.from(error);
  const broken = failed.findDetails(PreconditionFailureSchema).flatMap((it) => it.violations);
  const wrong = failed.findDetails(BadRequestSchema).flatMap((it) => it.fieldViolations);
  return {
    code: failed.code,
    reason: failed.findDetails(ErrorInfoSchema)[0]?.reason ?? "",
    violations: [
      ...broken.map((it) => ({ field: it.subject, words: it.description })),
      ...wrong.map((it) => ({ field: it.field, words: it.description })),
    ],
    message: failed.rawMessage,
  };
}

/** Whether nothing was decided: the same call, with the same request id, may succeed later. */
export function passes(problem: Problem): boolean {
  const always = [Code.Unavailable, Code.ResourceExhausted, Code.DeadlineExceeded];
  return always.includes(problem.code) || (!problem.reason && problem.code !== Code.Canceled);
}

// ---- What stands in the way now

/** The worst last. */
export type Condition = "behind" | "busy" | "away";

const conditions = signal<ReadonlyMap<object, Condition>>(new Map());
const RANKS: Condition[] = ["behind", "busy", "away"];

/** The worst of what anything on the page met at its last try; null while all is well. */
export const condition = computed<Condition | null>(() => {
  const met = new Set(conditions.value.values());
  return RANKS.findLast((it) => met.has(it)) ?? null;
});

/** True from when the servers no longer knew what this page had seen, until the reader has taken note. */
export const restored = signal(false);

export function report(owner: object, found: Condition | null): void {
  if ((conditions.peek().get(owner) ?? null) === found) return;
  const next = new Map(conditions.peek());
  if (found) next.set(owner, found);
  else next.delete(owner);
  conditions.value = next;
}

export function conditionOf(problem: Problem): Condition {
  if (["PROJECTION_LAG", "VIEW_FAILED", "PARKED", "HISTORY_CHANGED"].includes(problem.reason)) return "behind";
  return problem.reason && problem.reason !== "STOPPING" ? "busy" : "away";
}

// ---- The session

/** Remembers the token of a write, in this tab, also over a reload: what is read from now on includes it. */
export function remember(token: string): void {
  sessionStorage.setItem(CONSISTENCY_TOKEN, token);
}

export function rememberedToken(): string {
  return sessionStorage.getItem(CONSISTENCY_TOKEN) ?? "";
}

export function freshness(): Consistency {
  const token = rememberedToken();
  const requirement = token
    ? ({ case: "atLeastAsFresh", value: token } as const)
    : ({ case: "minimizeLatency", value: true } as const);
  const maxWait = { seconds: 0n, nanos: WAIT_MILLISECONDS * 1_000_000 };
  return create(ConsistencySchema, token ? { requirement, maxWait } : { requirement });
}

const whatever = create(ConsistencySchema, { requirement: { case: "minimizeLatency", value: true } });

/** Forgets a token that the servers do not know any more; false where the problem is another. */
export function forgetIfOutdated(problem: Problem): boolean {
  if (!["TOKEN_EPOCH_MISMATCH", "TOKEN_AHEAD"].includes(problem.reason) && !isMalformedToken(problem)) return false;
  if (!rememberedToken()) return false;
  sessionStorage.removeItem(CONSISTENCY_TOKEN);
  restored.value = true;
  return true;
}

function isMalformedToken(problem: Problem): boolean {
  return problem.code === Code.InvalidArgument && problem.violations.some((it) => it.field.startsWith("consistency"));
}

export interface Answer<T> {
  value: T;
  /** True where it may lack what this tab wrote: the view has not followed yet. */
  isOld: boolean;
}

/** Asks for a state that includes what this tab wrote, and takes an older one where that is all there is. */
export async function read<T>(call: (consistency: Consistency) => Promise<T>): Promise<Answer<T>> {
  try {
    return { value: await call(freshness()), isOld: false };
  } catch (error) {
    const problem = problemOf(error);
    if (forgetIfOutdated(problem)) return { value: await call(whatever), isOld: false };
    if (conditionOf(problem) !== "behind") throw error;
    return { value: await call(whatever), isOld: true };
  }
}

/** Waits longer each time, to five seconds, and not at all once the browser says that it is connected again. */
export async function pause(attempt: number, stopped?: AbortSignal): Promise<void> {
  const milliseconds = Math.min(5_000, 250 * 2 ** attempt) * (0.75 + Math.random() / 2);
  await new Promise<void>((resolve) => {
    const end = () => {
      clearTimeout(timer);
      window.removeEventListener("online", end);
      stopped?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    window.addEventListener("online", end);
    stopped?.addEventListener("abort", end);
  });
}

/** Sends a command until somebody has decided it. The request has a request id, so it is done once. */
export async function send<T>(call: () => Promise<T>): Promise<T> {
  const owner = {};
  try {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await call();
      } catch (error) {
        const problem = problemOf(error);
        if (!passes(problem)) throw error;
        report(owner, conditionOf(problem));
        await pause(attempt);
      }
    }
  } finally {
    report(owner, null);
  }
}
