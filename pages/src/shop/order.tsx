/** One order, live: what this tab asked for at once, and what anybody does as it becomes visible. */

import { useEffect } from "preact/hooks";

import { OrderStatus } from "../gen/commerce/type/v1/order_status_pb";
import { Heading } from "../heading";
import { useQuery } from "../live";
import { STATUS_WORDS, countText, moneyText, orderName, problemText, timeText } from "../words";
import { customer } from "./basket";
import {
  type Action,
  type Change,
  change,
  changes,
  follow,
  missing,
  orderOnPage,
  placedHere,
  queries,
  refusal,
  seen,
} from "./orders";
import { Missing } from "./product";

const LOOK_EVERY_MILLISECONDS = 3_000;
const NOT_DONE: Record<Action, string> = {
  place: "The order was not placed.",
  pay: "The payment was not taken.",
  ship: "It was not marked as shipped.",
  deliver: "It was not marked as delivered.",
  cancel: "The order was not cancelled.",
};

/** Whether the servers may know it by now: one that is on its way to them is not looked for. */
function isAsked(orderId: string): boolean {
  return !changes.value.some((it) => it.orderId === orderId && it.action === "place" && it.state === "sending");
}

export function Order({ id }: { id: string }) {
  const asked = isAsked(id);
  useEffect(() => {
    if (!asked) return undefined;
    const followed = follow(id);
    return followed.release;
  }, [id, asked]);
  const refused = refusal.value?.orderId === id ? refusal.value : null;
  const shown = orderOnPage(id);
  if (!shown) {
    const problem = missing.value.get(id);
    return problem ? <Missing words={problemText(problem)} /> : <Heading>Order {orderName(id)}</Heading>;
  }
  const { details, change: under } = shown;
  return (
    <article class="narrow order" aria-label={`Order ${orderName(id)}`}>
      <Heading>Order {orderName(id)}</Heading>
      <p class="state" role="status">
        <Status status={details.status} />
        <Progress change={under} />
      </p>
      {refused && (
        <p role="alert" class="note bad">
          <strong>{NOT_DONE[refused.action]}</strong> {problemText(refused.problem)}.
        </p>
      )}
      <Steps status={details.status} />
      <ul class="lines">
        {details.lines.map((it) => (
          <li key={it.productId}>
            <span class="grow">
              <a href={`#/product/${it.productId}`}>{it.productName}</a>
            </span>
            <span class="muted">
              {it.quantity} × {moneyText(it.unitPrice)}
            </span>
            <span class="price">{moneyText(it.lineTotal)}</span>
          </li>
        ))}
      </ul>
      <p class="total">
        <span>Total</span>
        <strong>{moneyText(details.total)}</strong>
      </p>
      <Actions id={id} status={details.status} isBusy={under !== null} />
      <dl class="facts">
        <Fact name="Placed" value={timeText(details.placedAt)} />
        <Fact name="Paid" value={timeText(details.paidAt)} />
        <Fact name="Shipped" value={timeText(details.shippedAt)} />
        <Fact name="Delivered" value={timeText(details.deliveredAt)} />
        <Fact name="Cancelled" value={timeText(details.cancelledAt)} />
        <Fact name="Goes to" value={[details.customerName, details.shippingAddress?.street, details.shippingAddress?.city].filter(Boolean).join(", ")} />
        <Fact name="Carrier" value={details.carrier} />
      </dl>
    </article>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  if (!value) return null;
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

export function Status({ status }: { status: OrderStatus }) {
  return <span class={`status s${status}`}>{STATUS_WORDS[status]}</span>;
}

export function Progress({ change: under }: { change: Change | null }) {
  if (!under) return <span class="progress done" data-progress="confirmed">Confirmed</span>;
  return (
    <span class="progress" data-progress={under.state}>
      <span class="pulse" aria-hidden="true" />
      {under.state === "sending" ? "On its way" : "Stored, about to be confirmed"}
    </span>
  );
}

const STEPS = [OrderStatus.PLACED, OrderStatus.PAID, OrderStatus.SHIPPED, OrderStatus.DELIVERED];

function Steps({ status }: { status: OrderStatus }) {
  if (status === OrderStatus.CANCELLED) return null;
  const reached = STEPS.indexOf(status);
  return (
    <ol class="steps" aria-label="Progress">
      {STEPS.map((it, index) => (
        <li key={it} class={index <= reached ? "reached" : ""} aria-current={index === reached ? "step" : undefined}>
          {STATUS_WORDS[it]}
        </li>
      ))}
    </ol>
  );
}

function Actions({ id, status, isBusy }: { id: string; status: OrderStatus; isBusy: boolean }) {
  const button = (action: Exclude<Action, "place">, words: string, kind = "") => (
    <button type="button" class={kind} disabled={isBusy} onClick={() => change(id, action)}>
      {words}
    </button>
  );
  const isPlaced = status === OrderStatus.PLACED;
  const isPaid = status === OrderStatus.PAID;
  return (
    <>
      {(isPlaced || isPaid) && (
        <p class="actions">
          {isPlaced && button("pay", "Pay now", "primary")}
          {button("cancel", "Cancel the order")}
        </p>
      )}
      {(isPaid || status === OrderStatus.SHIPPED) && (
        <details class="staff">
          <summary>For the staff</summary>
          <p class="actions">
            {isPaid && button("ship", "Mark as shipped")}
            {status === OrderStatus.SHIPPED && button("deliver", "Mark as delivered")}
          </p>
        </details>
      )}
    </>
  );
}

export function Orders() {
  const buyer = customer.value;
  const { answer, problem, isLoading } = useQuery(
    buyer?.id ?? null,
    (consistency, signal) => queries.listRecentOrders({ customerId: buyer?.id ?? "", pageSize: 20, consistency }, { signal }),
    { every: LOOK_EVERY_MILLISECONDS },
  );
  const listed = answer?.orders ?? [];
  // What this tab placed is in the list at once, whether the view has it or not.
  const mine = placedHere.value.filter((id) => !listed.some((it) => it.orderId === id) && orderOnPage(id));
  return (
    <div class="narrow">
      <Heading>Your orders</Heading>
      {problem && <p role="alert" class="note bad">{problemText(problem)}</p>}
      {!isLoading && !problem && !mine.length && !listed.length && (
        <p class="empty">
          None yet. <a href="#/">Look around in the shop</a>.
        </p>
      )}
      <ul class="orders" aria-busy={isLoading}>
        {mine.map((id) => {
          const shown = orderOnPage(id);
          if (!shown) return null;
          const units = shown.details.lines.reduce((sum, it) => sum + it.quantity, 0);
          return <Row key={id} id={id} units={units} placed={timeText(shown.details.placedAt)} total={moneyText(shown.details.total)} status={shown.details.status} under={shown.change} />;
        })}
        {listed.map((it) => {
          const shown = orderOnPage(it.orderId);
          const newer = shown && (shown.change || (seen.value.get(it.orderId)?.version ?? 0n) > it.version);
          return (
            <Row
              key={it.orderId}
              id={it.orderId}
              units={it.unitCount}
              placed={timeText(it.placedAt)}
              total={moneyText(it.total)}
              status={newer ? shown.details.status : it.status}
              under={shown?.change ?? null}
            />
          );
        })}
      </ul>
    </div>
  );
}

interface RowOfOrder {
  id: string;
  units: number | bigint;
  placed: string;
  total: string;
  status: OrderStatus;
  under: Change | null;
}

function Row({ id, units, placed, total, status, under }: RowOfOrder) {
  return (
    <li>
      <a href={`#/order/${id}`}>Order {orderName(id)}</a>
      <span class="muted grow">
        {placed} · {countText(units, "item")}
      </span>
      <span class="price">{total}</span>
      <Status status={status} />
      {under && <Progress change={under} />}
    </li>
  );
}
