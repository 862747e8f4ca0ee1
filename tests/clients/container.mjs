// Makes a container at an Azure storage on loopback: HOST PORT ACCOUNT KEY NAME.
import { createHmac } from "node:crypto";

const [host, port, account, key, name] = process.argv.slice(2);
const date = new Date().toUTCString();
const version = "2021-08-06";
const signed =
  `PUT${"\n".repeat(12)}x-ms-date:${date}\nx-ms-version:${version}\n` +
  `/${account}/${account}/${name}\nrestype:container`;
const signature = createHmac("sha256", Buffer.from(key, "base64")).update(signed).digest("base64");
const answer = await fetch(`http://${host}:${port}/${account}/${name}?restype=container`, {
  method: "PUT",
  headers: {
    "x-ms-date": date,
    "x-ms-version": version,
    authorization: `SharedKey ${account}:${signature}`,
  },
});
if (!answer.ok) throw new Error(await answer.text());
console.log("ok container");
