// A small shop: node dist/scenario.js COMMANDS QUERIES. examples/python/scenario.py does the same and prints the same.
import { argv } from "node:process";

import {
  AddProductRequest,
  PayOrderRequest,
  PlaceOrderRequest,
  RegisterCustomerRequest,
} from "./gen/commerce/command/v1/command_service.js";
import { GetOrderDetailsRequest, ListRecentOrdersRequest } from "./gen/commerce/query/v1/query_service.js";
import { orderStatusToJSON } from "./gen/commerce/type/v1/order_status.js";
import { CallFailed, oneCommand, Session } from "./tandem.js";

const [commandAddress = "127.0.0.1:50051", queryAddress = "127.0.0.1:50052"] = argv.slice(2);
const session = new Session(commandAddress, queryAddress);

const { customerId } = await session.command(
  session.commands.registerCustomer,
  RegisterCustomerRequest.create({
    name: "Ada Example",
    address: { street: "Obere Str. 57", city: "Berlin", postalCode: "12209", countryCode: "DE" },
  }),
);
const { productId } = await session.command(
  session.commands.addProduct,
  AddProductRequest.create({
    name: "Green Flower Pot",
    price: { minorUnits: 1999n, currencyCode: "EUR" },
    initialStock: 3n,
  }),
);

const request = oneCommand(PlaceOrderRequest.create({ customerId, lines: [{ productId, quantity: 2 }] }));
const placed = await session.command(session.commands.placeOrder, request);
console.log("placed, version", String(placed.receipt?.version));

const again = await session.command(session.commands.placeOrder, request);
console.log("the same command again: replayed", again.receipt?.replayed, "same order", again.orderId === placed.orderId);

const get = GetOrderDetailsRequest.create({ orderId: placed.orderId });
const { orderDetails } = await session.query(session.queries.getOrderDetails, get);
const total = orderDetails?.total;
console.log("read with the token:", orderDetails?.customerName, String(total?.minorUnits), total?.currencyCode);

try {
  const tooMany = PlaceOrderRequest.create({ customerId, lines: [{ productId, quantity: 2 }] });
  await session.command(session.commands.placeOrder, tooMany);
} catch (error) {
  if (!(error instanceof CallFailed)) throw error;
  const subjects = error.violations.map((it) => it.subject.replace(productId, "<product>"));
  console.log("refused:", error.reason, ...subjects);
}

try {
  await session.command(session.commands.placeOrder, PlaceOrderRequest.create({ lines: [{ productId }] }));
} catch (error) {
  if (!(error instanceof CallFailed)) throw error;
  console.log("refused:", error.reason, ...error.violations.map((it) => `${it.subject} ${it.reason}`));
}

for await (const state of session.watch(placed.orderId)) {
  console.log("watched:", orderStatusToJSON(state.status), "version", String(state.version));
  if (state.version > 1n) break;
  await session.command(session.commands.payOrder, PayOrderRequest.create({ orderId: placed.orderId }));
}

const { orders } = await session.query(
  session.queries.listRecentOrders,
  ListRecentOrdersRequest.create({ customerId }),
);
console.log("listed:", orders.length, "order,", orderStatusToJSON(orders[0]!.status));
session.close();
