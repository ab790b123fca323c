/** One product. */

import { useQuery } from "../live";
import { moneyText, problemText } from "../words";
import { queries } from "./orders";
import { Add, Stock } from "./search";

const LOOK_EVERY_MILLISECONDS = 5_000;

export function Product({ id }: { id: string }) {
  const { answer, problem } = useQuery(
    id,
    (consistency, signal) => queries.getProduct({ productId: id, consistency }, { signal }),
    { every: LOOK_EVERY_MILLISECONDS },
  );
  const product = answer?.product;
  if (problem) return <Missing words={problemText(problem)} />;
  if (!product) return <h1 tabIndex={-1}>Product</h1>;
  return (
    <article class="product">
      <p class="muted">
        <a href="#/">The shop</a> / <a href={`#/?category=${encodeURIComponent(product.category)}`}>{product.category}</a>
      </p>
      <h1 tabIndex={-1}>{product.name}</h1>
      <p class="large">
        <span class="price">{moneyText(product.price)}</span> <Stock product={product} />
      </p>
      <p>{product.description}</p>
      {product.attributes.length > 0 && (
        <dl class="facts">
          {product.attributes.map((it) => (
            <div key={it.name}>
              <dt>{it.name}</dt>
              <dd>{it.value}</dd>
            </div>
          ))}
        </dl>
      )}
      <Add product={product} />
    </article>
  );
}

export function Missing({ words }: { words: string }) {
  return (
    <>
      <h1 tabIndex={-1}>Not here</h1>
      <p role="alert" class="note bad">
        {words}
      </p>
      <p>
        <a href="#/">Back to the shop</a>
      </p>
    </>
  );
}
