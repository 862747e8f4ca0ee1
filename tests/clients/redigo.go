// redigo, with its pool: redigo HOST PORT
package main

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/gomodule/redigo/redis"
)

const prefix = "redigo"

var pool = &redis.Pool{
	MaxIdle: 4,
	Dial: func() (redis.Conn, error) {
		address := net.JoinHostPort(os.Args[1], os.Args[2])
		return redis.Dial("tcp", address, redis.DialReadTimeout(20*time.Second))
	},
}

func do(command string, args ...interface{}) interface{} {
	connection := pool.Get()
	defer connection.Close()
	reply, err := connection.Do(command, args...)
	must(err)
	return reply
}

func setsAndGets() {
	equal(do("SET", prefix+":a", "value", "EX", 100), "OK")
	equal(do("GET", prefix+":a"), []byte("value"))
	equal(do("GET", prefix+":none"), nil)
}

func spansSlots() {
	pairs, names := redis.Args{}, redis.Args{}
	for number := 0; number < 100; number++ {
		name := fmt.Sprintf("%s:many:%d", prefix, number)
		pairs, names = pairs.Add(name, number), names.Add(name)
	}
	equal(do("MSET", pairs...), "OK")
	found, err := redis.Ints(do("MGET", names...), nil)
	must(err)
	equal(found[99], 99)
	equal(do("DEL", names...), int64(100))
}

func pipelinesInOrder() {
	connection := pool.Get()
	defer connection.Close()
	for number := 0; number < 500; number++ {
		must(connection.Send("SET", fmt.Sprintf("%s:pipe:%d", prefix, number%31), number))
		must(connection.Send("GET", fmt.Sprintf("%s:pipe:%d", prefix, number%31)))
	}
	must(connection.Flush())
	for number := 0; number < 500; number++ {
		_, err := connection.Receive()
		must(err)
		found, err := redis.Int(connection.Receive())
		must(err)
		equal(found, number)
	}
}

func runsTransactions() {
	connection := pool.Get()
	defer connection.Close()
	key := "{" + prefix + ":tx}"
	_, err := connection.Do("WATCH", key)
	must(err)
	do("SET", key, 10)
	must(connection.Send("MULTI"))
	must(connection.Send("INCR", key))
	aborted, err := connection.Do("EXEC")
	must(err)
	equal(aborted, nil)
	must(connection.Send("MULTI"))
	must(connection.Send("INCR", key))
	sums, err := redis.Ints(connection.Do("EXEC"))
	must(err)
	equal(sums, []int{11})
}

func runsScripts() {
	connection := pool.Get()
	defer connection.Close()
	script := redis.NewScript(1, "return {KEYS[1], ARGV[1]}")
	for number := 0; number < 20; number++ {
		key := fmt.Sprintf("%s:script:%d", prefix, number)
		said, err := redis.Strings(script.Do(connection, key, "x"))
		must(err)
		equal(said, []string{key, "x"})
	}
}

func subscribes() {
	listener := redis.PubSubConn{Conn: pool.Get()}
	defer listener.Close()
	must(listener.PSubscribe(prefix + ":n*"))
	_, subscribed := listener.Receive().(redis.Subscription)
	equal(subscribed, true)
	do("PUBLISH", prefix+":news", "hello")
	message, _ := listener.Receive().(redis.Message)
	equal(string(message.Data), "hello")
}

func main() {
	run([]check{
		{"setsAndGets", setsAndGets},
		{"spansSlots", spansSlots},
		{"pipelinesInOrder", pipelinesInOrder},
		{"runsTransactions", runsTransactions},
		{"runsScripts", runsScripts},
		{"subscribes", subscribes},
	})
}
