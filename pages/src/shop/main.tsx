/** The shop's page. */

import { render } from "preact";
import { useEffect } from "preact/hooks";

import { problemOf, read } from "../calls";
import { Banner } from "../banner";
import { Heading, announceViews } from "../heading";
import { go, route } from "../route";
import { basket, customer } from "./basket";
import { Basket } from "./checkout";
import { Order, Orders } from "./order";
import { queries, refusal, resumeChanges } from "./orders";
import { Missing, Product } from "./product";
import { Search } from "./search";
import { SearchField } from "./search_field";

function Shop() {
  const { path } = route.value;
  const [view, id = ""] = path;
  const count = basket.value.reduce((sum, it) => sum + it.quantity, 0);
  const here = (name: string) => (view === name ? "page" : undefined);
  return (
    <>
      <a class="skip" href="#main" onClick={(it) => skip(it)}>
        Skip to the content
      </a>
      <header>
        <a class="brand" href="#/">
          <img src="/icon.svg" alt="" width="28" height="28" />
          <span>The shop</span>
        </a>
        <SearchField />
        <nav aria-label="Yours">
          <a href="#/orders" aria-current={here("orders")}>
            Orders
          </a>
          <a href="#/basket" aria-current={here("basket")} class="basket">
            Basket <span class="badge">{count}</span>
          </a>
        </nav>
      </header>
      <Banner />
      {refusal.value?.action === "place" && view !== "basket" && (
        <p role="alert" class="banners">
          <span class="note bad">
            An order was not placed. <a href="#/basket">See why, in the basket</a>.
          </span>
        </p>
      )}
      <main id="main">
        {view === undefined && <Search />}
        {view === "product" && <Product key={id} id={id} />}
        {view === "basket" && <Basket />}
        {view === "order" && <Order key={id} id={id} />}
        {view === "orders" && <Orders />}
        {view === "as" && <SignIn id={id} />}
        {view && !["product", "basket", "order", "orders", "as"].includes(view) && (
          <Missing words="There is no such page." />
        )}
      </main>
      <footer>
        <p>
          {customer.value ? `You buy as ${customer.value.name}. ` : ""}
          <a href="/sales">Sales</a>
        </p>
      </footer>
    </>
  );
}

function skip(event: MouseEvent): void {
  event.preventDefault();
  document.querySelector<HTMLElement>("main h1")?.focus();
}

/** #/as/<customer id>: buys as a customer that there is already. */
function SignIn({ id }: { id: string }) {
  useEffect(() => {
    void read((consistency) => queries.getCustomer({ customerId: id, consistency }))
      .then(({ value: { customer: found } }) => {
        if (!found) return;
        customer.value = { id, name: found.name, place: found.address ? `${found.address.street}, ${found.address.city}` : "" };
        go("/");
      })
      .catch((error: unknown) => {
        customer.value = null;
        console.warn(problemOf(error).message);
      });
  }, [id]);
  return <Heading>Signing in</Heading>;
}

announceViews();
resumeChanges();
const page = document.getElementById("page");
if (page) render(<Shop />, page);
