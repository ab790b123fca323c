/** The catalogue: what is found as one types, with what it can be narrowed down to. */

import { useRef } from "preact/hooks";

import { type ProductHit, ProductSort } from "../gen/commerce/query/v1/query_service_pb";
import type { ProductCard } from "../gen/commerce/query/v1/views_pb";
import { Heading } from "../heading";
import { useQuery } from "../live";
import { adjust, route } from "../route";
import { countText, moneyText, problemText } from "../words";
import { addToBasket, basket } from "./basket";
import { queries } from "./orders";

const TYPING_MILLISECONDS = 120;
const PAGE_SIZE = 24;
// In the address. No category has one.
const SEPARATOR = "\n";
const SORTS: [ProductSort, string][] = [
  [ProductSort.UNSPECIFIED, "Best match"],
  [ProductSort.PRICE_ASC, "Price, lowest first"],
  [ProductSort.PRICE_DESC, "Price, highest first"],
  [ProductSort.NEWEST, "Newest"],
];

export function Search() {
  const { settings } = route.value;
  const query = settings.get("q") ?? "";
  const categories = settings.getAll("category").flatMap((it) => it.split(SEPARATOR)).filter(Boolean);
  const inStock = settings.get("stock") === "1";
  const sort = Number(settings.get("sort") ?? 0) as ProductSort;
  const pages = Number(settings.get("pages") ?? 1);
  const key = JSON.stringify([query, categories, inStock, sort, pages]);
  const before = useRef(query);
  const delay = before.current === query ? 0 : TYPING_MILLISECONDS;
  before.current = query;
  const request = { query, filter: { categories, inStock }, sort, pageSize: Math.min(100, PAGE_SIZE * pages) };
  const { answer, problem, isLoading } = useQuery(
    key,
    (consistency, signal) => queries.searchProducts({ ...request, consistency }, { signal }),
    { delay },
  );
  const toggle = (category: string) => {
    const others = categories.filter((it) => it !== category);
    const next = others.length < categories.length ? others : [...categories, category];
    adjust({ category: next.join(SEPARATOR), pages: null });
  };
  const facets = answer?.facets;
  return (
    <div class="catalogue">
      <Heading>
        {query ? `Results for “${query}”` : "Everything in the shop"}
      </Heading>
      <aside aria-label="Narrow down">
        <fieldset>
          <legend>Category</legend>
          {facets?.categories.map((it) => (
            <label key={it.category} class="choice">
              <input type="checkbox" checked={categories.includes(it.category)} onChange={() => toggle(it.category)} />
              <span>{it.category || "Other"}</span>
              <span class="count">{it.count}</span>
            </label>
          ))}
        </fieldset>
        <fieldset>
          <legend>Availability</legend>
          <label class="choice">
            <input
              type="checkbox"
              checked={inStock}
              onChange={() => adjust({ stock: inStock ? null : "1", pages: null })}
            />
            <span>In stock</span>
            <span class="count">{facets?.inStockCount ?? ""}</span>
          </label>
        </fieldset>
      </aside>
      <section aria-label="Products" aria-busy={isLoading}>
        <div class="bar">
          <p role="status" class="muted">
            {facets && countText(facets.totalCount, "product")}
            {facets?.truncated && " or more"}
          </p>
          <label class="inline">
            <span>Sort by</span>
            <select value={sort} onChange={(it) => adjust({ sort: it.currentTarget.value })}>
              {SORTS.map(([value, name]) => (
                <option key={value} value={value}>
                  {name}
                </option>
              ))}
            </select>
          </label>
        </div>
        {answer?.correctedQuery && (
          <p class="note">
            Little was found for “{query}” as it is written. These are for{" "}
            <a href={`#/?q=${encodeURIComponent(answer.correctedQuery)}`}>{answer.correctedQuery}</a>.
          </p>
        )}
        {problem && <p role="alert" class="note bad">{problemText(problem)}</p>}
        {!answer && !problem && <Skeleton />}
        {answer && answer.hits.length === 0 && <p class="empty">Nothing was found. Try fewer words, or another category.</p>}
        <ul class="grid">
          {answer?.hits.map((it) => <Hit key={it.product?.productId} hit={it} />)}
        </ul>
        {answer?.nextPageToken && pages < 4 && (
          <p class="center">
            <button type="button" onClick={() => adjust({ pages: String(pages + 1) })}>
              Show more
            </button>
          </p>
        )}
      </section>
    </div>
  );
}

function Skeleton() {
  return (
    <ul class="grid" aria-hidden="true">
      {Array.from({ length: 8 }, (_, it) => (
        <li key={it} class="card skeleton" />
      ))}
    </ul>
  );
}

function Hit({ hit }: { hit: ProductHit }) {
  const product = hit.product;
  if (!product) return null;
  return (
    <li class="card">
      <p class="muted small">{product.category}</p>
      <h2>
        <a href={`#/product/${product.productId}`}>
          <Highlighted text={hit.highlightedName} />
        </a>
      </h2>
      <p class="description">
        <Highlighted text={hit.highlightedDescription} />
      </p>
      <p class="foot">
        <span class="price">{moneyText(product.price)}</span>
        <Stock product={product} />
      </p>
      <Add product={product} />
    </li>
  );
}

/** The contract's HTML, in which <em> is all there is, as elements of our own: nothing of it is run. */
export function Highlighted({ text }: { text: string }) {
  const parts = text.split(/<\/?em>/);
  return <>{parts.map((it, index) => (index % 2 ? <mark key={index}>{unescaped(it)}</mark> : unescaped(it)))}</>;
}

const SIGNS: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', "#x27": "'", "#39": "'", "#34": '"' };

function unescaped(text: string): string {
  return text.replace(/&(#?\w+);/g, (whole, name: string) => SIGNS[name] ?? whole);
}

export function Stock({ product }: { product: ProductCard }) {
  if (product.discontinued) return <span class="stock none">No longer sold</span>;
  if (product.available <= 0n) return <span class="stock none">Sold out</span>;
  if (product.available <= 5n) return <span class="stock few">{`${product.available} left`}</span>;
  return <span class="stock">In stock</span>;
}

export function Add({ product }: { product: ProductCard }) {
  const there = basket.value.find((it) => it.productId === product.productId);
  const line = {
    productId: product.productId,
    name: product.name,
    quantity: 1,
    minorUnits: String(product.price?.minorUnits ?? 0n),
    currencyCode: product.price?.currencyCode ?? "",
  };
  return (
    <button
      type="button"
      class={there ? "" : "primary"}
      disabled={product.discontinued || product.available <= 0n}
      onClick={() => addToBasket(line)}
    >
      {there ? `In the basket: ${there.quantity}` : "Add to basket"}
      <span class="hidden"> {product.name}</span>
    </button>
  );
}
