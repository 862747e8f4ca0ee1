"""redis-py's usual idioms on one plain connection pool: python redis_py.py HOST PORT [2|3]"""

import sys
import threading
import time

import redis
import redis.utils

from checks import equal, run

host, port = sys.argv[1], int(sys.argv[2])
protocol = int(sys.argv[3]) if len(sys.argv) > 3 else 3
prefix = f"py{protocol}"


def connect(**options):
    return redis.Redis(host=host, port=port, protocol=protocol, socket_timeout=20, **options)


client = connect(decode_responses=True, client_name="checks")
raw = connect()


def parses_with_hiredis():
    equal(redis.utils.HIREDIS_AVAILABLE, True)


def answers_a_ping():
    equal(client.ping(), True)
    equal(client.echo("hello"), "hello")


def knows_its_name():
    with connect(decode_responses=True, client_name="checks", single_connection_client=True) as one:
        equal(one.client_getname(), "checks")
        if one.client_id() <= 0:
            raise AssertionError("an id is positive")


def keeps_bytes_as_they_are():
    every = bytes(range(256)) * 3 + b"\r\n$5\r\n*1\r\n"
    raw.set(f"{prefix}:bytes", every)
    equal(raw.get(f"{prefix}:bytes"), every)
    raw.set(every[:40], b"")
    equal(raw.get(every[:40]), b"")
    equal(raw.delete(every[:40]), 1)
    equal(raw.get(f"{prefix}:none"), None)


def carries_a_large_value():
    large = bytes(5_000_000)
    raw.set(f"{prefix}:large", large)
    equal(raw.get(f"{prefix}:large"), large)
    equal(raw.strlen(f"{prefix}:large"), 5_000_000)
    equal(raw.delete(f"{prefix}:large"), 1)


def sets_with_options():
    key = f"{prefix}:options"
    equal(client.set(key, "1", ex=100), True)
    if not 0 < client.ttl(key) <= 100:
        raise AssertionError("no time to live")
    equal(client.set(key, "2", nx=True), None)
    equal(client.set(key, "3", get=True), "1")
    equal(client.incr(key), 4)
    equal(client.incrbyfloat(key, 0.5), 4.5)
    equal(client.getdel(key), "4.5")


def spans_slots():
    keys = [f"{prefix}:many:{number}" for number in range(100)]
    equal(client.mset({key: key.upper() for key in keys}), True)
    equal(client.mget(keys + [f"{prefix}:none"]), [key.upper() for key in keys] + [None])
    equal(client.exists(*keys, keys[0]), 101)
    equal(client.touch(*keys), 100)
    equal(client.unlink(*keys[:50]), 50)
    equal(client.delete(*keys), 50)


def pipelines_in_order():
    with client.pipeline(transaction=False) as pipeline:
        for number in range(2_000):
            pipeline.set(f"{prefix}:pipe:{number % 97}", number)
            pipeline.get(f"{prefix}:pipe:{number % 97}")
        answers = pipeline.execute()
    equal(answers, [one for number in range(2_000) for one in (True, str(number))])


def reports_an_error_where_it_is():
    client.set(f"{prefix}:text", "x")
    with client.pipeline(transaction=False) as pipeline:
        pipeline.incr(f"{prefix}:text")
        pipeline.get(f"{prefix}:text")
        answers = pipeline.execute(raise_on_error=False)
    if not isinstance(answers[0], redis.ResponseError):
        raise AssertionError(answers)
    equal(answers[1], "x")


def runs_transactions():
    a, b = f"{{{prefix}:tx}}:a", f"{{{prefix}:tx}}:b"
    client.delete(a, b)
    with client.pipeline() as transaction:
        transaction.set(a, 1).incr(a).sadd(b, "x").smembers(b)
        equal(transaction.execute(), [True, 2, 1, {"x"}])
    with client.pipeline() as transaction:
        transaction.watch(a)
        equal(transaction.get(a), "2")
        client.set(a, 10)
        transaction.multi()
        transaction.incr(a)
        try:
            transaction.execute()
            raise AssertionError("the watched key had changed")
        except redis.WatchError:
            pass
    equal(client.get(a), "10")

    def increment(transaction):
        transaction.multi()
        transaction.incr(a)

    equal(client.transaction(increment, a), [11])


def has_every_type():
    key = f"{prefix}:type"
    for suffix in ("h", "l", "s", "z", "x", "bits", "geo"):
        client.delete(f"{key}:{suffix}")
    equal(client.hset(f"{key}:h", mapping={"a": 1, "b": 2}), 2)
    equal(client.hgetall(f"{key}:h"), {"a": "1", "b": "2"})
    equal(client.rpush(f"{key}:l", *"abc"), 3)
    equal(client.lrange(f"{key}:l", 0, -1), ["a", "b", "c"])
    equal(client.sadd(f"{key}:s", *"abc"), 3)
    equal(client.smembers(f"{key}:s"), {"a", "b", "c"})
    equal(client.zadd(f"{key}:z", {"a": 1.5, "b": 2}), 2)
    equal([tuple(pair) for pair in client.zrange(f"{key}:z", 0, -1, withscores=True)], [("a", 1.5), ("b", 2.0)])
    client.xadd(f"{key}:x", {"field": "value"}, id="1-1")
    client.xgroup_create(f"{key}:x", "group", id="0")
    found = client.xreadgroup("group", "me", {f"{key}:x": ">"}, count=1)
    if "1-1" not in repr(found):
        raise AssertionError(found)
    equal(client.xack(f"{key}:x", "group", "1-1"), 1)
    equal(client.setbit(f"{key}:bits", 7, 1), 0)
    equal(client.bitcount(f"{key}:bits"), 1)
    equal(client.geoadd(f"{key}:geo", [13.36, 38.11, "Palermo"]), 1)
    equal(client.pfadd(f"{key}:pf", *"abc") in (0, 1), True)
    equal(client.pfcount(f"{key}:pf"), 3)
    equal(client.object("encoding", f"{key}:s") is not None, True)
    equal(client.type(f"{key}:z"), "zset")


def runs_scripts():
    key = f"{prefix}:script"
    equal(client.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, key, "v"), "OK")
    script = client.register_script("return {KEYS[1], ARGV[1], redis.call('GET', KEYS[1])}")
    equal(script(keys=[key], args=["x"]), [key, "x", "v"])
    equal(script(keys=[key], args=["y"]), [key, "y", "v"])
    digest = client.script_load("return 7")
    equal(client.script_exists(digest), [True])
    for number in range(20):
        equal(client.evalsha(digest, 1, f"{prefix}:spread:{number}"), 7)


def blocks_until_there_is_something():
    key = f"{prefix}:queue"
    client.delete(key)
    timer = threading.Timer(0.3, lambda: connect().rpush(key, "job"))
    timer.start()
    equal(list(client.blpop(key, timeout=10)), [key, "job"])
    timer.join()
    equal(client.blpop(key, timeout=0.1), None)
    stream = f"{prefix}:blocked"
    client.delete(stream)
    timer = threading.Timer(0.3, lambda: connect().xadd(stream, {"a": "b"}))
    timer.start()
    if not client.xread({stream: "$"}, block=10_000):
        raise AssertionError("the stream's entry was not seen")
    timer.join()


def publishes_and_subscribes():
    with client.pubsub() as listener:
        listener.subscribe(f"{prefix}:news")
        listener.psubscribe(f"{prefix}:*:pattern")
        wait_for(listener, "subscribe")
        wait_for(listener, "psubscribe")
        connect().publish(f"{prefix}:news", "hello")
        equal(wait_for(listener, "message")["data"], "hello")
        connect().publish(f"{prefix}:a:pattern", "there")
        equal(wait_for(listener, "pmessage")["data"], "there")
        listener.unsubscribe()
        listener.punsubscribe()
        wait_for(listener, "unsubscribe")
        wait_for(listener, "punsubscribe")
    equal(client.ping(), True)


def wait_for(listener, kind):
    until = time.monotonic() + 10
    while time.monotonic() < until:
        message = listener.get_message(timeout=1)
        if message and message["type"] == kind:
            return message
    raise AssertionError(f"no {kind}")


def scans_everything_once():
    keys = {f"{prefix}:scan:{number}" for number in range(1_000)}
    for key in keys:
        client.set(key, 1)
    found = list(client.scan_iter(match=f"{prefix}:scan:*", count=100))
    equal(set(found), keys)
    equal(len(client.keys(f"{prefix}:scan:*")), 1_000)
    if client.dbsize() < 1_000:
        raise AssertionError("the size is of the whole cluster")
    if client.randomkey() is None:
        raise AssertionError("there are keys")
    client.delete(*keys)


def serves_threads():
    errors = []

    def work(number):
        try:
            for turn in range(200):
                key = f"{prefix}:thread:{number}:{turn % 10}"
                client.set(key, f"{number}.{turn}")
                equal(client.get(key), f"{number}.{turn}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(errors, [])


def answers_about_itself():
    if "redis_version" not in client.info("server"):
        raise AssertionError("INFO tells no version")
    if client.command_count() < 100:
        raise AssertionError("COMMAND COUNT")
    equal(client.time()[0] > 1_600_000_000, True)
    client.config_get("maxmemory")


def refuses_what_it_cant_do():
    for words in (["NOSUCHCOMMAND"], ["GET"], ["SET", "a"]):
        try:
            client.execute_command(*words)
        except redis.ResponseError:
            continue
        raise AssertionError(f"{words} was accepted")
    equal(client.ping(), True)


run(
    [
        parses_with_hiredis,
        answers_a_ping,
        knows_its_name,
        keeps_bytes_as_they_are,
        carries_a_large_value,
        sets_with_options,
        spans_slots,
        pipelines_in_order,
        reports_an_error_where_it_is,
        runs_transactions,
        has_every_type,
        runs_scripts,
        blocks_until_there_is_something,
        publishes_and_subscribes,
        scans_everything_once,
        serves_threads,
        answers_about_itself,
        refuses_what_it_cant_do,
    ]
)
