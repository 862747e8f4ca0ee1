"""redis-py in cluster mode: python redis_py_cluster.py HOST PORT"""

import sys

from redis.cluster import RedisCluster

from checks import equal, run

client = RedisCluster(host=sys.argv[1], port=int(sys.argv[2]), decode_responses=True, socket_timeout=20)
prefix = "pyc"


def learns_the_nodes():
    nodes = client.get_nodes()
    if not nodes:
        raise AssertionError("no nodes")
    equal(client.ping(target_nodes=RedisCluster.ALL_NODES), True)


def works_on_every_slot():
    for number in range(500):
        client.set(f"{prefix}:{number}", number)
    for number in range(500):
        equal(client.get(f"{prefix}:{number}"), str(number))


def pipelines_in_order():
    with client.pipeline() as pipeline:
        for number in range(300):
            pipeline.incr(f"{prefix}:pipe:{number}").get(f"{prefix}:pipe:{number}")
        answers = pipeline.execute()
    equal([answer for answer in answers[1::2]], [str(answer) for answer in answers[::2]])


def spans_slots():
    keys = {f"{prefix}:many:{number}": str(number) for number in range(50)}
    equal(bool(client.mset_nonatomic(keys)), True)
    equal(client.mget_nonatomic(*keys), list(keys.values()))
    equal(client.delete(*keys), 50)


def scans_everything():
    found = set(client.scan_iter(match=f"{prefix}:[0-9]*", count=100))
    equal(found, {f"{prefix}:{number}" for number in range(500)})


def publishes_to_shards():
    with client.pubsub() as listener:
        listener.ssubscribe(f"{prefix}:shard")
        for _ in range(20):
            message = listener.get_sharded_message(timeout=1)
            if message and message["type"] == "ssubscribe":
                break
        client.spublish(f"{prefix}:shard", "hello")
        for _ in range(20):
            message = listener.get_sharded_message(timeout=1)
            if message and message["type"] == "smessage":
                return equal(message["data"], "hello")
        raise AssertionError("no message")


run([learns_the_nodes, works_on_every_slot, pipelines_in_order, spans_slots, scans_everything, publishes_to_shards])
