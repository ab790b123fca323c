/** Money, times and states in the reader's language and spelling. */

import { type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";

import { type Problem } from "./calls";
import type { Money } from "./gen/commerce/type/v1/money_pb";
import { OrderStatus } from "./gen/commerce/type/v1/order_status_pb";

export function moneyText(money: Money | undefined): string {
  if (!money?.currencyCode) return "";
  const format = new Intl.NumberFormat(undefined, { style: "currency", currency: money.currencyCode });
  const digits = format.resolvedOptions().maximumFractionDigits ?? 2;
  // A string has all digits of an amount that is too large for a number.
  const sign = money.minorUnits < 0n ? "-" : "";
  const units = (money.minorUnits < 0n ? -money.minorUnits : money.minorUnits).toString().padStart(digits + 1, "0");
  const whole = units.slice(0, units.length - digits);
  const amount = `${sign}${whole}${digits ? `.${units.slice(-digits)}` : ""}`;
  return format.format(amount as Intl.StringNumericLiteral);
}

const TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export function timeText(moment: Timestamp | undefined): string {
  return moment ? TIME.format(timestampDate(moment)) : "";
}

const COUNT = new Intl.NumberFormat();

export function countText(count: number | bigint, one: string, many = `${one}s`): string {
  return `${COUNT.format(count)} ${BigInt(count) === 1n ? one : many}`;
}

export const STATUS_WORDS: Record<OrderStatus, string> = {
  [OrderStatus.UNSPECIFIED]: "Unknown",
  [OrderStatus.PLACED]: "Placed",
  [OrderStatus.PAID]: "Paid",
  [OrderStatus.SHIPPED]: "Shipped",
  [OrderStatus.CANCELLED]: "Cancelled",
  [OrderStatus.DELIVERED]: "Delivered",
};

/** A problem as a sentence for who met it; the rule's own words are its violations'. */
export function problemText(problem: Problem): string {
  const text = problem.violations[0]?.words || problem.message || "Something went wrong";
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** By its end, which is random. Ids of orders that were placed in the same minute begin alike. */
export function orderName(orderId: string): string {
  return orderId.slice(-8).toUpperCase();
}
