"""valkey-glide, alone and in cluster mode: python valkey_glide.py HOST PORT"""

import asyncio
import sys

import glide

from checks import equal, run

address = glide.NodeAddress(sys.argv[1], int(sys.argv[2]))


async def one():
    options = glide.GlideClientConfiguration([address], request_timeout=10_000, client_name="checks")
    client = await glide.GlideClient.create(options)
    equal(await client.ping(), b"PONG")
    await idioms(client, "glide:one")
    await client.close()


async def cluster():
    options = glide.GlideClusterClientConfiguration([address], request_timeout=10_000)
    client = await glide.GlideClusterClient.create(options)
    equal(await client.ping(), b"PONG")
    await idioms(client, "glide:cluster")
    await client.close()


async def idioms(client, prefix):
    equal(await client.set(f"{prefix}:a", "1"), "OK")
    equal(await client.get(f"{prefix}:a"), b"1")
    equal(await client.incr(f"{prefix}:a"), 2)
    keys = {f"{prefix}:{number}": str(number) for number in range(60)}
    equal(await client.mset(keys), "OK")
    equal(await client.mget(list(keys)), [value.encode() for value in keys.values()])
    equal(await client.hset(f"{prefix}:h{id(client)}", {"f": "v"}), 1)
    equal(await client.hgetall(f"{prefix}:h{id(client)}"), {b"f": b"v"})
    answers = await asyncio.gather(*(client.get(key) for key in keys))
    equal(answers, [value.encode() for value in keys.values()])
    equal(await client.delete(list(keys)), 60)


def works_on_one_connection():
    asyncio.run(one())


def works_in_cluster_mode():
    asyncio.run(cluster())


run([works_on_one_connection] if "--one" in sys.argv else [works_on_one_connection, works_in_cluster_mode])
