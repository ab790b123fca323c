/** Revenue by day, as bars; the same as a table for who does not see them. */

import type { SalesSummary } from "../gen/commerce/query/v1/sales_pb";
import { moneyText } from "../words";

const WIDTH = 1_000;
const HEIGHT = 220;

export function Chart({ summary, days }: { summary: SalesSummary; days: string[] }) {
  const sold = new Map(summary.days.map((it) => [it.date, it.sold]));
  const amounts = days.map((it) => Number(sold.get(it)?.revenue?.minorUnits ?? 0n));
  const most = Math.max(1, ...amounts);
  const step = WIDTH / Math.max(1, days.length);
  const highest = sold.get(days[amounts.indexOf(most)] ?? "")?.revenue;
  return (
    <figure class="chart">
      <p class="muted small">{highest ? `Up to ${moneyText(highest)} a day` : ""}</p>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
        {days.map((day, index) => {
          const height = Math.max(amounts[index] ? 2 : 0, ((amounts[index] ?? 0) / most) * (HEIGHT - 4));
          return (
            <rect key={day} x={index * step + step * 0.1} y={HEIGHT - height} width={step * 0.8} height={height}>
              <title>{`${day}: ${moneyText(sold.get(day)?.revenue) || "nothing"}`}</title>
            </rect>
          );
        })}
        <line x1="0" y1={HEIGHT} x2={WIDTH} y2={HEIGHT} />
      </svg>
      <p class="axis muted small" aria-hidden="true">
        <span>{days[0]}</span>
        <span>{days.at(-1)}</span>
      </p>
      <details>
        <summary>As a table</summary>
        <div class="scrolls" tabIndex={0} role="region" aria-label="Sold by day">
          <table>
            <thead>
              <tr>
                <th scope="col">Day</th>
                <th scope="col">Orders</th>
                <th scope="col">Revenue</th>
              </tr>
            </thead>
            <tbody>
              {days
                .filter((it) => sold.has(it))
                .map((day) => (
                  <tr key={day}>
                    <th scope="row">{day}</th>
                    <td>{String(sold.get(day)?.orderCount ?? 0n)}</td>
                    <td>{moneyText(sold.get(day)?.revenue)}</td>
                  </tr>
                ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}
