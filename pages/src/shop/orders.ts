/**
 * Orders as this tab sees them: what the servers show, and over it what this tab has asked for and not seen yet.
 *
 * A change goes through these states; it is shown in all of them, and is in session storage until its end:
 *
 *   sending ──▶ stored ──▶ confirmed (the watch shows the state, or a later one)
 *      └──────▶ refused (by a rule: what was shown is taken back, and the rule's words are said)
 */

import { clone, create, fromJson, toJson } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { Code, createClient } from "@connectrpc/connect";
import { effect, signal } from "@preact/signals";

import {
  type Problem,
  conditionOf,
  forgetIfOutdated,
  freshness,
  newId,
  passes,
  pause,
  problemOf,
  remember,
  report,
  send,
  transport,
} from "../calls";
import { CommandService, PlaceOrderRequestSchema } from "../gen/commerce/command/v1/command_service_pb";
import { QueryService } from "../gen/commerce/query/v1/query_service_pb";
import { type OrderDetails, OrderDetailsSchema } from "../gen/commerce/query/v1/views_pb";
import type { CommandReceipt } from "../gen/commerce/type/v1/receipt_pb";
import { OrderStatus } from "../gen/commerce/type/v1/order_status_pb";
import { go } from "../route";
import { type BasketLine, emptyBasket, putBack } from "./basket";

export const commands = createClient(CommandService, transport);
export const queries = createClient(QueryService, transport);

export type Action = "place" | "pay" | "ship" | "deliver" | "cancel";

export interface Change {
  requestId: string;
  orderId: string;
  action: Action;
  state: "sending" | "stored";
  /** Of the receipt; the watch has come to it when the change is confirmed. */
  version: string;
  /** For `place`: what was ordered, by whom, and how the order is shown until it is confirmed. */
  lines: BasketLine[];
  customerId: string;
  expected: unknown;
}

export interface Refusal {
  orderId: string;
  action: Action;
  problem: Problem;
}

const HEARTBEAT_SECONDS = 5;
const PENDING = "tandem.pending_changes";
const STATUS_AFTER: Record<Action, OrderStatus> = {
  place: OrderStatus.PLACED,
  pay: OrderStatus.PAID,
  ship: OrderStatus.SHIPPED,
  deliver: OrderStatus.DELIVERED,
  cancel: OrderStatus.CANCELLED,
};

/** What this tab asked for and has not seen yet, oldest first. */
export const changes = signal<Change[]>(JSON.parse(sessionStorage.getItem(PENDING) ?? "[]") as Change[]);
effect(() => sessionStorage.setItem(PENDING, JSON.stringify(changes.value)));

/** The last refusal, until the reader has taken note of it. */
export const refusal = signal<Refusal | null>(null);

function set(requestId: string, change: Partial<Change> | null): void {
  const others = (it: Change) => it.requestId !== requestId;
  changes.value = change
    ? changes.value.map((it) => (others(it) ? it : { ...it, ...change }))
    : changes.value.filter(others);
}

// ---- Asking for a change

export function placeOrder(customerId: string, lines: BasketLine[], expected: OrderDetails): string {
  const orderId = expected.orderId;
  begin({ orderId, action: "place", lines, customerId, expected: toJson(OrderDetailsSchema, expected) });
  placedHere.value = [orderId, ...placedHere.value];
  emptyBasket();
  return orderId;
}

export function change(orderId: string, action: Exclude<Action, "place">): void {
  begin({ orderId, action, lines: [], customerId: "", expected: null });
}

function begin(asked: Omit<Change, "requestId" | "state" | "version">): void {
  const started: Change = { ...asked, requestId: newId(), state: "sending", version: "" };
  refusal.value = null;
  changes.value = [...changes.value, started];
  void carryOut(started);
}

async function carryOut(change: Change): Promise<void> {
  let version = change.version;
  if (change.state === "sending") {
    try {
      const receipt = await send(() => call(change));
      if (receipt) {
        remember(receipt.consistencyToken);
        version = receipt.version.toString();
      }
    } catch (error) {
      set(change.requestId, null);
      if (change.action === "place") putBack(change.lines);
      refusal.value = { orderId: change.orderId, action: change.action, problem: problemOf(error) };
      if (change.action === "place" && location.hash === `#/order/${change.orderId}`) go("/basket");
      return;
    }
    set(change.requestId, { state: "stored", version });
  }
  const followed = follow(change.orderId);
  await followed.reaches(BigInt(version || 0));
  followed.release();
  set(change.requestId, null);
}

async function call({ action, orderId, requestId, customerId, lines }: Change): Promise<CommandReceipt | undefined> {
  const request = { requestId, orderId };
  switch (action) {
    case "place": {
      const wanted = lines.map((it) => ({ productId: it.productId, quantity: it.quantity }));
      return (await commands.placeOrder(create(PlaceOrderRequestSchema, { ...request, customerId, lines: wanted }))).receipt;
    }
    case "pay":
      return (await commands.payOrder({ ...request, paymentReference: `card-${requestId.slice(-8)}` })).receipt;
    case "ship":
      return (await commands.shipOrder({ ...request, carrier: "DHL" })).receipt;
    case "deliver":
      return (await commands.deliverOrder(request)).receipt;
    case "cancel":
      return (await commands.cancelOrder({ ...request, reason: "No longer needed" })).receipt;
  }
}

/** What a tab had under way when it was reloaded goes on. A command that was sent already is done once. */
export function resumeChanges(): void {
  for (const it of changes.peek()) void carryOut(it);
}

// ---- Seeing the states

export const seen = signal<ReadonlyMap<string, OrderDetails>>(new Map());
/** Orders that are not there, or somebody else's. */
export const missing = signal<ReadonlyMap<string, Problem>>(new Map());

interface Following {
  users: number;
  stop: AbortController;
  waiting: { version: bigint; done: () => void }[];
}

export interface Followed {
  reaches: (version: bigint) => Promise<void>;
  release: () => void;
}

const followed = new Map<string, Following>();

/** Watches an order until everybody who asked for it has released it. */
export function follow(orderId: string): Followed {
  let following = followed.get(orderId);
  if (!following) {
    following = { users: 0, stop: new AbortController(), waiting: [] };
    followed.set(orderId, following);
    void watch(orderId, following);
  }
  const mine = following;
  mine.users += 1;
  return {
    reaches: (version) =>
      new Promise((done) => {
        if ((seen.peek().get(orderId)?.version ?? 0n) >= version && seen.peek().has(orderId)) done();
        else mine.waiting.push({ version, done });
      }),
    release: () => {
      mine.users -= 1;
      if (mine.users > 0) return;
      mine.stop.abort();
      if (followed.get(orderId) === mine) followed.delete(orderId);
    },
  };
}

async function watch(orderId: string, following: Following): Promise<void> {
  const stopped = following.stop.signal;
  let resumeFrom = "";
  let attempt = 0;
  try {
    while (!stopped.aborted) {
      const silence = new Silence(stopped);
      try {
        const first = resumeFrom ? { resumeFrom } : { consistency: freshness() };
        const request = { orderId, heartbeatInterval: { seconds: BigInt(HEARTBEAT_SECONDS) }, ...first };
        for await (const message of queries.watchOrderDetails(request, { signal: silence.signal, timeoutMs: 0 })) {
          attempt = 0;
          silence.begin();
          report(following, null);
          resumeFrom = message.asOf;
          if (message.event.case === "orderDetails") arrive(orderId, following, message.event.value);
        }
      } catch (error) {
        if (stopped.aborted) return;
        const problem = problemOf(error);
        if (forgetIfOutdated(problem) || problem.reason === "TOKEN_EPOCH_MISMATCH") {
          resumeFrom = "";
          continue;
        }
        if (!passes(problem) && problem.code !== Code.Canceled) {
          missing.value = new Map(missing.value).set(orderId, problem);
          for (const it of following.waiting) it.done();
          return;
        }
        report(following, conditionOf(problem));
      } finally {
        silence.end();
      }
      attempt += 1;
      await pause(attempt, stopped);
    }
  } finally {
    report(following, null);
    if (followed.get(orderId) === following && stopped.aborted) followed.delete(orderId);
  }
}

/** Ends a watch on which nothing comes for three heartbeats: the connection is dead though nobody said so. */
class Silence {
  readonly #stop = new AbortController();
  readonly signal: AbortSignal;
  #timer = 0;

  constructor(stopped: AbortSignal) {
    this.signal = AbortSignal.any([stopped, this.#stop.signal]);
    this.begin();
  }

  begin(): void {
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.#stop.abort(), 3_000 * HEARTBEAT_SECONDS);
  }

  end(): void {
    clearTimeout(this.#timer);
  }
}

function arrive(orderId: string, following: Following, details: OrderDetails): void {
  if ((seen.peek().get(orderId)?.version ?? 0n) > details.version) return;
  seen.value = new Map(seen.value).set(orderId, details);
  following.waiting = following.waiting.filter(({ version, done }) => {
    if (details.version < version) return true;
    done();
    return false;
  });
}

export interface OrderOnPage {
  details: OrderDetails;
  /** What is under way: the latest change of this tab that the servers do not show yet. */
  change: Change | null;
}

/** An order as it is, with what this tab asked for laid over it. */
export function orderOnPage(orderId: string): OrderOnPage | null {
  const mine = changes.value.filter((it) => it.orderId === orderId);
  const placed = mine.find((it) => it.action === "place");
  let details = seen.value.get(orderId);
  if (!details && placed) details = fromJson(OrderDetailsSchema, placed.expected as never);
  if (!details) return null;
  const change = mine.at(-1) ?? null;
  if (change) {
    details = clone(OrderDetailsSchema, details);
    details.status = STATUS_AFTER[change.action];
    if (change.action === "pay") details.paidAt ??= timestampNow();
  }
  return { details, change };
}

/** Orders that this tab placed since it was loaded, and that lists may not have yet, newest first. */
export const placedHere = signal(
  changes
    .peek()
    .filter((it) => it.action === "place")
    .map((it) => it.orderId)
    .reverse(),
);
