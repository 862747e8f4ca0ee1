// ioredis, alone and in cluster mode: node ioredis.mjs HOST PORT

import Redis from "ioredis";
import { equal, run, soon } from "./checks.mjs";

const [host, port] = [process.argv[2], Number(process.argv[3])];
const client = new Redis({ host, port, connectionName: "checks", maxRetriesPerRequest: 1 });
const prefix = "io";

async function answersAPing() {
  equal(await client.ping(), "PONG");
}

async function keepsBytes() {
  const bytes = Buffer.from(Array.from({ length: 256 }, (_, at) => at));
  await client.set(`${prefix}:bytes`, bytes);
  equal(await client.getBuffer(`${prefix}:bytes`), bytes);
  equal(await client.get(`${prefix}:none`), null);
}

async function spansSlots() {
  const pairs = Object.fromEntries(Array.from({ length: 60 }, (_, at) => [`${prefix}:many:${at}`, `${at}`]));
  equal(await client.mset(pairs), "OK");
  equal(await client.mget(Object.keys(pairs)), Object.values(pairs));
  equal(await client.del(Object.keys(pairs)), 60);
}

async function pipelinesInOrder() {
  const pipeline = client.pipeline();
  for (let at = 0; at < 500; at += 1) pipeline.set(`${prefix}:p:${at % 31}`, at).get(`${prefix}:p:${at % 31}`);
  const answers = await pipeline.exec();
  equal(answers.filter((_, at) => at % 2 === 1).map(([, value]) => Number(value)), Array.from({ length: 500 }, (_, at) => at));
}

async function runsTransactions() {
  await client.del(`{${prefix}}:tx`);
  equal(await client.multi().set(`{${prefix}}:tx`, 1).incr(`{${prefix}}:tx`).exec(), [[null, "OK"], [null, 2]]);
}

async function runsScripts() {
  client.defineCommand("twice", { numberOfKeys: 1, lua: "return redis.call('INCRBY', KEYS[1], 2 * ARGV[1])" });
  await client.del(`${prefix}:twice`);
  equal(await client.twice(`${prefix}:twice`, 4), 8);
  equal(await client.twice(`${prefix}:twice`, 4), 16);
}

async function subscribes() {
  const listener = client.duplicate();
  const heard = new Promise((resolve) => listener.on("message", (channel, text) => resolve([channel, text])));
  equal(await listener.subscribe(`${prefix}:news`), 1);
  await client.publish(`${prefix}:news`, "hello");
  equal(await soon(heard), [`${prefix}:news`, "hello"]);
  await listener.quit();
}

async function blocks() {
  const waiter = client.duplicate();
  await client.del(`${prefix}:queue`);
  const popped = waiter.blpop(`${prefix}:queue`, 10);
  setTimeout(() => client.rpush(`${prefix}:queue`, "job"), 200);
  equal(await soon(popped), [`${prefix}:queue`, "job"]);
  await waiter.quit();
}

async function scansEverything() {
  const keys = Array.from({ length: 200 }, (_, at) => `${prefix}:scan:${at}`);
  await Promise.all(keys.map((key) => client.set(key, 1)));
  const found = new Set();
  for await (const part of client.scanStream({ match: `${prefix}:scan:*`, count: 50 })) part.forEach((key) => found.add(key));
  equal([...found].sort(), keys.sort());
}

async function worksInClusterMode() {
  const cluster = new Redis.Cluster([{ host, port }], { redisOptions: { maxRetriesPerRequest: 1 } });
  for (let at = 0; at < 200; at += 1) await cluster.set(`${prefix}:c:${at}`, at);
  equal(await cluster.get(`${prefix}:c:77`), "77");
  await cluster.quit();
}

const checks = [answersAPing, keepsBytes, spansSlots, pipelinesInOrder, runsTransactions, runsScripts, subscribes, blocks, scansEverything];
await run(process.argv.includes("--one") ? checks : [...checks, worksInClusterMode], () => client.quit());
