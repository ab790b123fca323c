/** The basket, who orders, and placing the order. */

import { create } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { useState } from "preact/hooks";

import { type Violation, newId, problemOf, remember, send } from "../calls";
import { OrderDetailsSchema } from "../gen/commerce/query/v1/views_pb";
import { OrderStatus } from "../gen/commerce/type/v1/order_status_pb";
import { Heading } from "../heading";
import { go } from "../route";
import { moneyText, problemText } from "../words";
import { type BasketLine, type Customer, amount, basket, customer, setQuantity } from "./basket";
import { commands, placeOrder, refusal } from "./orders";

const money = (minorUnits: bigint, currencyCode: string) => ({ $typeName: "commerce.type.v1.Money" as const, minorUnits, currencyCode });

export function Basket() {
  const lines = basket.value;
  const refused = refusal.value?.action === "place" ? refusal.value : null;
  const currency = lines[0]?.currencyCode ?? "";
  const [changing, change] = useState(false);
  const buyer = customer.value;
  return (
    <div class="narrow">
      <Heading>Basket</Heading>
      {refused && (
        <div role="alert" class="note bad">
          <p>
            <strong>The order was not placed.</strong> Your basket is as it was.
          </p>
          <ul>
            {refused.problem.violations.length ? (
              refused.problem.violations.map((it) => <li key={it.field}>{named(it, lines)}</li>)
            ) : (
              <li>{problemText(refused.problem)}</li>
            )}
          </ul>
        </div>
      )}
      {lines.length === 0 ? (
        <p class="empty">
          Nothing is in it yet. <a href="#/">Look around in the shop</a>.
        </p>
      ) : (
        <>
          <ul class="lines">
            {lines.map((it) => (
              <Line key={it.productId} line={it} />
            ))}
          </ul>
          <p class="total">
            <span>Total</span>
            <strong>{moneyText(money(amount(lines), currency))}</strong>
          </p>
          {buyer && !changing ? (
            <section aria-label="Delivery" class="delivery">
              <p>
                <span class="muted">Delivered to</span> {buyer.name}
                {buyer.place && `, ${buyer.place}`}{" "}
                <button type="button" class="plain" onClick={() => change(true)}>
                  Somebody else
                </button>
              </p>
              <button type="button" class="primary wide" onClick={() => order(buyer, lines)}>
                Place order
              </button>
            </section>
          ) : (
            <Buyer done={() => change(false)} />
          )}
        </>
      )}
    </div>
  );
}

function order(buyer: Customer, lines: BasketLine[]): void {
  const currency = lines[0]?.currencyCode ?? "";
  const expected = create(OrderDetailsSchema, {
    orderId: newId(),
    customerId: buyer.id,
    customerName: buyer.name,
    status: OrderStatus.PLACED,
    placedAt: timestampNow(),
    lines: lines.map((it) => ({
      productId: it.productId,
      productName: it.name,
      quantity: it.quantity,
      unitPrice: money(BigInt(it.minorUnits), it.currencyCode),
      lineTotal: money(BigInt(it.minorUnits) * BigInt(it.quantity), it.currencyCode),
    })),
    subtotal: money(amount(lines), currency),
    total: money(amount(lines), currency),
  });
  go(`/order/${placeOrder(buyer.id, lines, expected)}`);
}

/** The rule's words, with the name of the product that they are about. */
function named(violation: Violation, lines: BasketLine[]): string {
  const line = lines.find((it) => violation.field.includes(it.productId));
  return line ? `${line.name}: ${violation.words}` : violation.words;
}

function Line({ line }: { line: BasketLine }) {
  const id = `quantity-${line.productId}`;
  return (
    <li>
      <span class="grow">
        <a href={`#/product/${line.productId}`}>{line.name}</a>
      </span>
      <label for={id} class="hidden">
        Quantity of {line.name}
      </label>
      <input
        id={id}
        type="number"
        inputMode="numeric"
        min={1}
        max={999}
        value={line.quantity}
        onChange={(it) => setQuantity(line.productId, Math.max(1, Math.min(999, it.currentTarget.valueAsNumber || 1)))}
      />
      <span class="price">{moneyText(money(BigInt(line.minorUnits) * BigInt(line.quantity), line.currencyCode))}</span>
      <button type="button" class="plain" onClick={() => setQuantity(line.productId, 0)}>
        Remove<span class="hidden"> {line.name}</span>
      </button>
    </li>
  );
}

const FIELDS: [name: string, label: string, autocomplete: AutoFill, required: boolean][] = [
  ["name", "Name", "name", true],
  ["email", "E-mail", "email", false],
  ["street", "Street and number", "street-address", true],
  ["postal_code", "Postal code", "postal-code", false],
  ["city", "City", "address-level2", true],
  ["country_code", "Country, as two letters", "country", true],
];

function Buyer({ done }: { done: () => void }) {
  const [violations, complain] = useState<Violation[]>([]);
  const [isBusy, setBusy] = useState(false);
  const submit = async (form: HTMLFormElement) => {
    const given = Object.fromEntries([...new FormData(form)].map(([key, value]) => [key, String(value).trim()]));
    const countryCode = (given.country_code ?? "").toUpperCase();
    const address = { street: given.street ?? "", city: given.city ?? "", postalCode: given.postal_code ?? "", countryCode };
    const id = newId();
    const request = {
      requestId: newId(),
      customerId: id,
      name: given.name ?? "",
      email: given.email ?? "",
      address,
    };
    setBusy(true);
    try {
      const { receipt } = await send(() => commands.registerCustomer(request));
      if (receipt) remember(receipt.consistencyToken);
      customer.value = { id, name: request.name, place: `${address.street}, ${address.city}` };
      done();
    } catch (error) {
      const problem = problemOf(error);
      complain(problem.violations.length ? problem.violations : [{ field: "", words: problemText(problem) }]);
    } finally {
      setBusy(false);
    }
  };
  const wordsFor = (field: string) =>
    violations.find((it) => it.field === field || it.field === `address.${field}`)?.words;
  const others = violations.filter((it) => !FIELDS.some(([name]) => it.field === name || it.field === `address.${name}`));
  return (
    <form
      noValidate
      class="form"
      aria-label="Who orders"
      onSubmit={(it) => {
        it.preventDefault();
        void submit(it.currentTarget);
      }}
    >
      <h2>Where does it go?</h2>
      {others.map((it) => (
        <p key={it.field} role="alert" class="note bad">
          {it.field} {it.words}
        </p>
      ))}
      {FIELDS.map(([name, label, autocomplete, required]) => {
        const wrong = wordsFor(name);
        return (
          <p key={name} class={name}>
            <label for={name}>
              {label}
              {!required && <span class="muted"> (not needed)</span>}
            </label>
            <input
              id={name}
              name={name}
              autocomplete={autocomplete}
              required={required}
              aria-invalid={Boolean(wrong)}
              aria-describedby={wrong ? `${name}-wrong` : undefined}
            />
            {wrong && (
              <span id={`${name}-wrong`} role="alert" class="wrong">
                {wrong}
              </span>
            )}
          </p>
        );
      })}
      <button type="submit" class="primary wide" disabled={isBusy}>
        Go on
      </button>
    </form>
  );
}
