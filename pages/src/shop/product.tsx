/** One product. */

import { Heading } from "../heading";
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
  if (!product) return <Heading>Product</Heading>;
  return (
    <article class="product">
      <p class="muted">
        <a href="#/">The shop</a> / <a href={`#/?category=${encodeURIComponent(product.category)}`}>{product.category}</a>
      </p>
      <Heading>{product.name}</Heading>
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
      <Heading>Not here</Heading>
      <p role="alert" class="note bad">
        {words}
      </p>
      <p>
        <a href="#/">Back to the shop</a>
      </p>
    </>
  );
}
