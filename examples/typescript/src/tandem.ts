// What a good client of Tandem does, for @grpc/grpc-js: docs/clients.md says why.
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import {
  type CallOptions,
  type ChannelOptions,
  type ClientUnaryCall,
  type ServiceError,
  Metadata,
  credentials,
  status,
} from "@grpc/grpc-js";

import { CommandServiceClient } from "./gen/commerce/command/v1/command_service.js";
import { QueryServiceClient, WatchOrderDetailsRequest } from "./gen/commerce/query/v1/query_service.js";
import type { OrderDetails } from "./gen/commerce/query/v1/views.js";
import { Consistency } from "./gen/commerce/type/v1/consistency.js";
import type { CommandReceipt } from "./gen/commerce/type/v1/receipt.js";
import { BadRequest, ErrorInfo, PreconditionFailure } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";

const serviceConfig = {
  loadBalancingConfig: [{ round_robin: {} }],
  // Commands alone: with its request_id one is done once, however often it is sent. A channel cannot tell a query that waited
  // for its view in vain (PROJECTION_LAG) from one that is worth another try.
  methodConfig: [
    {
      name: [{ service: "commerce.command.v1.CommandService" }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.05s",
        maxBackoff: "1s",
        backoffMultiplier: 3,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
  retryThrottling: { maxTokens: 100, tokenRatio: 0.1 },
};

export const channelOptions: ChannelOptions = {
  "grpc.service_config": JSON.stringify(serviceConfig),
  // A server that went without a word is noticed within 40 s. The servers take a ping every 10 s.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 1,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 2_000,
};

/** A refusal: `reason` is one of commerce.type.v1.ErrorReason; `violations` names every wrong field or broken rule. */
export class CallFailed extends Error {
  readonly code: status;
  readonly reason: string;
  readonly metadata: Record<string, string> = {};
  readonly violations: { subject: string; reason: string; description: string }[] = [];

  constructor(error: ServiceError) {
    super(error.message, { cause: error });
    this.code = error.code;
    const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
    let reason = "";
    for (const { typeUrl, value } of packed instanceof Buffer ? Status.decode(packed).details : []) {
      switch (typeUrl) {
        case "type.googleapis.com/google.rpc.ErrorInfo": {
          const info = ErrorInfo.decode(value);
          reason = info.domain === "tandem" ? info.reason : "";
          this.metadata = info.metadata;
          break;
        }
        case "type.googleapis.com/google.rpc.BadRequest":
          for (const it of BadRequest.decode(value).fieldViolations) {
            this.violations.push({ subject: it.field, reason: it.reason, description: it.description });
          }
          break;
        case "type.googleapis.com/google.rpc.PreconditionFailure":
          for (const it of PreconditionFailure.decode(value).violations) {
            this.violations.push({ subject: it.subject, reason: it.type, description: it.description });
          }
      }
    }
    this.reason = reason;
  }
}

type Unary<Q, R> = (
  request: Q,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, response: R) => void,
) => ClientUnaryCall;

function unary<Q, R>(client: object, method: Unary<Q, R>, request: Q, milliseconds: number): Promise<R> {
  const options = { deadline: Date.now() + milliseconds };
  return new Promise((resolve, reject) => {
    method.call(client, request, new Metadata(), options, (error, response) =>
      error ? reject(new CallFailed(error)) : resolve(response),
    );
  });
}

/** A copy of the request that is one command, however often it is sent: with a requestId, unless it has one. */
export function oneCommand<Q extends { requestId: string }>(request: Q): Q {
  return { ...request, requestId: request.requestId || newId() };
}

/** A UUIDv7 (RFC 9562), for a command or for what it creates: the milliseconds, and then 74 random bits of a UUIDv4. */
export function newId(): string {
  const milliseconds = Date.now().toString(16).padStart(12, "0");
  return `${milliseconds.slice(0, 8)}-${milliseconds.slice(8)}-7${randomUUID().slice(15)}`;
}

/** The contract's limit for one query. */
const mostTokens = 20;
/** In place of tokens: every command that is acknowledged by now. */
const everything = "~";

/** One caller, who sees its own writes: its queries carry the token of its last command, and those that it learned. */
export class Session {
  readonly commands: CommandServiceClient;
  readonly queries: QueryServiceClient;
  // The position of each token held, in the order in which they came; 0 where it is not known.
  #positions = new Map<string, bigint>();

  /** token: another session's, from a cookie, a header or a message. */
  constructor(commandAddress: string, queryAddress: string, token = "") {
    this.commands = new CommandServiceClient(commandAddress, credentials.createInsecure(), channelOptions);
    this.queries = new QueryServiceClient(queryAddress, credentials.createInsecure(), channelOptions);
    this.learn(token);
  }

  get token(): string {
    return [...this.#positions.keys()].join("~");
  }

  /** Sees from now on what another has written: a session's or a receipt's token, an asOf. */
  learn(token: string): void {
    for (const it of token === everything ? [everything] : token.split("~")) {
      this.#take(it);
    }
  }

  /** A request without requestId is a new command each time; `oneCommand` makes one that may be sent again. */
  async command<Q extends { requestId: string }, R extends { receipt?: CommandReceipt | undefined }>(
    method: Unary<Q, R>,
    request: Q,
    milliseconds = 10_000,
  ): Promise<R> {
    const held = this.#held();
    const response = await unary(this.commands, method, oneCommand(request), milliseconds);
    const receipt = response.receipt;
    if (receipt) {
      // It comes after all that was known when the command was sent, unless the command was done by an earlier call.
      this.#take(receipt.consistencyToken, receipt.replayed ? [] : held, receipt.position);
    }
    return response;
  }

  /** A request with a consistency of its own is sent as it is. */
  async query<Q extends { consistency?: Consistency | undefined }, R extends { asOf: string }>(
    method: Unary<Q, R>,
    request: Q,
    milliseconds = 10_000,
  ): Promise<R> {
    const held = request.consistency ? [] : this.#held();
    const sent = held.length > 0 ? { ...request, consistency: including(held) } : request;
    try {
      const response = await unary(this.queries, method, sent, milliseconds);
      this.#answered(held, response.asOf);
      return response;
    } catch (error) {
      if (error instanceof CallFailed && error.reason === "TOKEN_EPOCH_MISMATCH") {
        held.forEach((it) => this.#positions.delete(it));
      }
      throw error;
    }
  }

  /** The order as it is, and every newer state, through servers that stop and connections that break. */
  async *watch(orderId: string): AsyncGenerator<OrderDetails> {
    const request = WatchOrderDetailsRequest.create({ orderId });
    const held = this.#held();
    if (held.length > 0) {
      request.consistency = including(held);
    }
    for (let pause = 200; ; pause = Math.min(2 * pause, 10_000)) {
      const stream = this.queries.watchOrderDetails(request);
      try {
        for await (const message of stream) {
          request.resumeFrom = message.asOf;
          this.#answered(held, message.asOf);
          pause = 100;
          if (message.orderDetails) {
            yield message.orderDetails;
          }
        }
      } catch (error) {
        const failed = new CallFailed(error as ServiceError);
        const broken = [status.INTERNAL, status.UNKNOWN, status.CANCELLED].includes(failed.code) && !failed.reason;
        const away = [status.UNAVAILABLE, status.RESOURCE_EXHAUSTED, status.DEADLINE_EXCEEDED].includes(failed.code);
        if (!broken && !away) {
          throw failed;
        }
      } finally {
        stream.cancel();
      }
      await sleep(Math.random() * pause);
    }
  }

  close(): void {
    this.commands.close();
    this.queries.close();
  }

  /** The newest first. */
  #held(): string[] {
    return [...this.#positions.keys()].reverse();
  }

  /** An answer includes every token that its query carried. */
  #answered(carried: string[], asOf: string): void {
    const left = carried.filter((it) => this.#positions.has(it));
    if (left.length > 1 || left.includes(everything)) {
      this.#take(asOf, left);
    }
  }

  /** Holds a token in place of those that it includes. position: of a receipt; the higher one includes the other. */
  #take(token: string, included: string[] = [], position = 0n): void {
    included.forEach((it) => this.#positions.delete(it));
    if (token === "" || this.#positions.has(token) || this.#positions.has(everything)) {
      return;
    }
    if (position > 0n) {
      if ([...this.#positions.values()].some((known) => known >= position)) {
        return;
      }
      this.#positions.forEach((known, it) => known > 0n && this.#positions.delete(it));
    }
    this.#positions.set(token, position);
    if (token === everything || this.#positions.size > mostTokens) {
      this.#positions = new Map([[everything, 0n]]);
    }
  }
}

function including(tokens: string[]): Consistency {
  const [first, ...others] = tokens;
  return tokens.includes(everything)
    ? Consistency.create({ fullyConsistent: true })
    : Consistency.create({ atLeastAsFresh: first, tokens: others });
}
