/**
 * What the console knows: asked of the projector once a second, over the same service as `tandem` uses.
 *
 * The last two minutes are kept in this tab, for rates and for the lines of lag.
 */

import { Code, createClient } from "@connectrpc/connect";
import { signal } from "@preact/signals";

import { accessToken, passes, problemOf, transport } from "../calls";
import { ReceiptService } from "../gen/commerce/command/v1/receipt_service_pb";
import {
  type CacheNode,
  type Generation,
  GenerationState,
  type Projection,
  ProjectionService,
  ProjectionState,
} from "../gen/commerce/projection/v1/projection_service_pb";
import { Health, HealthCheckResponse_ServingStatus } from "../gen/grpc/health/v1/health_pb";

export const operators = createClient(ProjectionService, transport);
export const receipts = createClient(ReceiptService, transport);
const health = createClient(Health, transport);

export const EVERY_MILLISECONDS = 1_000;
const KEPT = 120;
const RATE_LOOKS = 5;
/** Who takes longer is shown as away. */
const LOOK_MILLISECONDS = 2_000;
const ACTOR = "tandem.actor";

export type ServiceState = "serving" | "not serving" | "unreachable";

export interface Service {
  name: string;
  state: ServiceState;
  problem: string;
}

/** Everything at one moment. `at` is in milliseconds. */
export interface Look {
  at: number;
  head: bigint;
  services: Service[];
  views: Projection[];
  generations: Map<string, Generation>;
  nodes: CacheNode[];
  /** What stands in the way of knowing more, as sentences. */
  problems: string[];
}

/** The last looks, the oldest first. */
export const looks = signal<Look[]>([]);
/** Asks at once, and not only when the next second is over. */
export const asked = signal(0);

export function lookAgain(): void {
  asked.value += 1;
}

const SERVICES: [name: string, header: string][] = [
  ["command server", "command"],
  ["projector", "projector"],
  ["query server", ""],
];

async function healthOf([name, service]: [string, string], stop: AbortSignal): Promise<Service> {
  const headers: Record<string, string> = service ? { "tandem-service": service } : {};
  try {
    const { status } = await health.check({}, { signal: stop, timeoutMs: LOOK_MILLISECONDS, headers });
    const serves = status === HealthCheckResponse_ServingStatus.SERVING;
    return { name, state: serves ? "serving" : "not serving", problem: "" };
  } catch (error) {
    return { name, state: "unreachable", problem: problemOf(error).message };
  }
}

/** Of a projector that does not answer, how the services are, and what it said last. */
export async function look(stop: AbortSignal): Promise<Look> {
  const services = Promise.all(SERVICES.map((it) => healthOf(it, stop)));
  try {
    return await lookAtViews(stop, services);
  } catch (error) {
    const problem = problemOf(error);
    const last = looks.peek().at(-1);
    if (stop.aborted || !passes(problem) || !last) throw error;
    const words = `The projector does not answer: ${problem.message}. The views are as it last said.`;
    return { ...last, services: await services, problems: [words] };
  }
}

async function lookAtViews(stop: AbortSignal, asking: Promise<Service[]>): Promise<Look> {
  const options = { signal: stop, timeoutMs: LOOK_MILLISECONDS };
  const [services, listed, others, cache] = await Promise.all([
    asking,
    operators.listProjections({}, options),
    operators.listGenerations({}, options),
    operators.listCacheNodes({}, options),
  ]);
  const found: Look = {
    at: performance.now(),
    head: listed.feedHead,
    services,
    views: listed.projections,
    generations: new Map(others.generations.map((it) => [it.view, it])),
    nodes: cache.nodes,
    problems: listed.unreachable.map((it) => `The views are as the projector last saw them: ${it.problem}.`),
  };
  looks.value = [...looks.peek().slice(1 - KEPT), found];
  return found;
}

/** How much a number grew in a second, over the last looks; null where that is not known yet. */
export function rateOf(of: (look: Look) => bigint | undefined): number | null {
  const last = looks.value.slice(-RATE_LOOKS);
  const [first, now] = [last[0], last.at(-1)];
  if (!first || !now || first === now) return null;
  const [before, after] = [of(first), of(now)];
  if (before === undefined || after === undefined || after < before) return null;
  return (Number(after - before) * 1_000) / (now.at - first.at);
}

export function millisecondsOf(lag: { seconds: bigint; nanos: number } | undefined): number {
  return lag ? Number(lag.seconds) * 1_000 + lag.nanos / 1_000_000 : 0;
}

export const PROJECTION_WORDS: Record<ProjectionState, string> = {
  [ProjectionState.UNSPECIFIED]: "unknown",
  [ProjectionState.RUNNING]: "running",
  [ProjectionState.STANDBY]: "on standby",
  [ProjectionState.FAILED]: "stopped",
};

export const GENERATION_WORDS: Record<GenerationState, string> = {
  [GenerationState.UNSPECIFIED]: "unknown",
  [GenerationState.REQUESTED]: "asked for",
  [GenerationState.FILLING]: "filling",
  [GenerationState.COMPARING]: "comparing",
  [GenerationState.READY]: "ready",
  [GenerationState.KEPT]: "kept",
  [GenerationState.OTHER_VERSION]: "of another version",
};

// ---- Who acts

/** For the operators' log, where nothing proves who calls. */
export function actor(): string {
  return sessionStorage.getItem(ACTOR) ?? "";
}

export function rememberActor(name: string): void {
  sessionStorage.setItem(ACTOR, name);
}

export function isKnown(): boolean {
  return accessToken() !== "";
}

export function asActor(): { headers: Record<string, string> } {
  return { headers: !isKnown() && actor() ? { "tandem-actor": actor() } : {} };
}

export function isNotThere(error: unknown): boolean {
  return problemOf(error).code === Code.NotFound;
}
