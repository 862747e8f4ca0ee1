// node-redis, alone and in cluster mode: node node_redis.mjs HOST PORT [2|3]

import { createClient, createCluster } from "redis";
import { equal, run, soon } from "./checks.mjs";

const url = `redis://${process.argv[2]}:${process.argv[3]}`;
const RESP = Number(process.argv[4] ?? 3);
const client = await createClient({ url, name: "checks", RESP }).connect();
const prefix = `node${RESP}`;

async function answersAPing() {
  equal(await client.ping(), "PONG");
}

async function spansSlots() {
  const pairs = Array.from({ length: 60 }, (_, at) => [`${prefix}:many:${at}`, `${at}`]);
  equal(await client.mSet(pairs), "OK");
  equal(await client.mGet(pairs.map(([key]) => key)), pairs.map(([, value]) => value));
  equal(await client.del(pairs.map(([key]) => key)), 60);
}

async function pipelinesInOrder() {
  const answers = await Promise.all(Array.from({ length: 500 }, (_, at) => client.set(`${prefix}:p`, at, { GET: true })));
  equal(answers.slice(1).map(Number), Array.from({ length: 499 }, (_, at) => at));
}

async function hasMaps() {
  await client.del(`${prefix}:h`);
  equal(await client.hSet(`${prefix}:h`, { a: 1, b: 2 }), 2);
  equal({ ...(await client.hGetAll(`${prefix}:h`)) }, { a: "1", b: "2" });
  await client.zAdd(`${prefix}:z`, { score: 1.5, value: "a" });
  equal(await client.zScore(`${prefix}:z`, "a"), 1.5);
}

async function runsTransactions() {
  await client.del(`{${prefix}}:tx`);
  equal(await client.multi().set(`{${prefix}}:tx`, 1).incr(`{${prefix}}:tx`).exec(), ["OK", 2]);
}

async function subscribes() {
  const listener = await client.duplicate().connect();
  let hear;
  const heard = new Promise((resolve) => { hear = resolve; });
  await listener.subscribe(`${prefix}:news`, (text) => hear(text));
  await client.publish(`${prefix}:news`, "hello");
  equal(await soon(heard), "hello");
  await listener.unsubscribe();
  await listener.close();
}

async function blocks() {
  const waiter = await client.duplicate().connect();
  await client.del(`${prefix}:queue`);
  const popped = waiter.blPop(`${prefix}:queue`, 10);
  setTimeout(() => client.rPush(`${prefix}:queue`, "job"), 200);
  equal({ ...(await soon(popped)) }, { key: `${prefix}:queue`, element: "job" });
  await waiter.close();
}

async function scansEverything() {
  const keys = Array.from({ length: 200 }, (_, at) => `${prefix}:scan:${at}`);
  await Promise.all(keys.map((key) => client.set(key, 1)));
  const found = new Set();
  for await (const part of client.scanIterator({ MATCH: `${prefix}:scan:*`, COUNT: 50 })) [part].flat().forEach((key) => found.add(key));
  equal([...found].sort(), keys.sort());
}

async function worksInClusterMode() {
  const cluster = createCluster({ rootNodes: [{ url }], defaults: { RESP } });
  await cluster.connect();
  for (let at = 0; at < 200; at += 1) await cluster.set(`${prefix}:c:${at}`, at);
  equal(await cluster.get(`${prefix}:c:77`), "77");
  await cluster.close();
}

const checks = [answersAPing, spansSlots, pipelinesInOrder, hasMaps, runsTransactions, subscribes, blocks, scansEverything];
await run(process.argv.includes("--one") ? checks : [...checks, worksInClusterMode], () => client.close());
