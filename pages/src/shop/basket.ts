/** What is to be ordered, and who orders it. Kept by the browser. */

import { effect, signal } from "@preact/signals";

export interface BasketLine {
  productId: string;
  name: string;
  quantity: number;
  minorUnits: string;
  currencyCode: string;
}

export interface Customer {
  id: string;
  name: string;
  place: string;
}

const BASKET = "tandem.basket";
const CUSTOMER = "tandem.customer";

export const basket = signal<BasketLine[]>(JSON.parse(sessionStorage.getItem(BASKET) ?? "[]") as BasketLine[]);
effect(() => sessionStorage.setItem(BASKET, JSON.stringify(basket.value)));

export const customer = signal<Customer | null>(JSON.parse(localStorage.getItem(CUSTOMER) ?? "null") as Customer | null);
effect(() => localStorage.setItem(CUSTOMER, JSON.stringify(customer.value)));

export function addToBasket(line: BasketLine): void {
  const there = basket.value.find((it) => it.productId === line.productId);
  if (there) setQuantity(line.productId, there.quantity + line.quantity);
  else basket.value = [...basket.value, line];
}

/** 0 takes it out. */
export function setQuantity(productId: string, quantity: number): void {
  basket.value = basket.value
    .map((it) => (it.productId === productId ? { ...it, quantity } : it))
    .filter((it) => it.quantity > 0);
}

export function emptyBasket(): void {
  basket.value = [];
}

export function putBack(lines: BasketLine[]): void {
  for (const it of lines) addToBasket(it);
}

export function amount(lines: BasketLine[]): bigint {
  return lines.reduce((sum, it) => sum + BigInt(it.minorUnits) * BigInt(it.quantity), 0n);
}
