// go-redis, alone and in cluster mode: go_redis HOST PORT [--one]
package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"gopkg.in/redis.v5"
)

const prefix = "gor"

var (
	address = net.JoinHostPort(os.Args[1], os.Args[2])
	client  = redis.NewClient(&redis.Options{Addr: address, MaxRetries: 0, ReadTimeout: 20 * time.Second})
)

func keys(name string, count int) []string {
	all := make([]string, count)
	for number := range all {
		all[number] = fmt.Sprintf("%s:%s:%03d", prefix, name, number)
	}
	return all
}

func answersAPing() {
	equal(client.Ping().Val(), "PONG")
}

func keepsBytes() {
	every := append(bytes.Repeat([]byte{0, 13, 10, 255}, 100), "$5\r\n"...)
	must(client.Set(prefix+":bytes", every, 0).Err())
	found, err := client.Get(prefix + ":bytes").Bytes()
	must(err)
	equal(found, every)
	equal(client.Get(prefix+":none").Err(), redis.Nil)
}

func carriesALargeValue() {
	large := bytes.Repeat([]byte("x"), 5000000)
	must(client.Set(prefix+":large", large, time.Minute).Err())
	found, err := client.Get(prefix + ":large").Bytes()
	must(err)
	equal(bytes.Equal(found, large), true)
	equal(client.Del(prefix+":large").Val(), int64(1))
}

func spansSlots() {
	names := keys("many", 100)
	pairs := make([]interface{}, 0, 200)
	values := make([]interface{}, 0, 100)
	for _, name := range names {
		pairs = append(pairs, name, name)
		values = append(values, name)
	}
	must(client.MSet(pairs...).Err())
	equal(client.MGet(names...).Val(), values)
	equal(client.Del(names...).Val(), int64(100))
}

func pipelinesInOrder() {
	answers := make([]*redis.StringCmd, 500)
	_, err := client.Pipelined(func(pipe *redis.Pipeline) error {
		for number := range answers {
			key := fmt.Sprintf("%s:pipe:%d", prefix, number%31)
			pipe.Set(key, number, 0)
			answers[number] = pipe.Get(key)
		}
		return nil
	})
	must(err)
	for number, answer := range answers {
		equal(answer.Val(), fmt.Sprint(number))
	}
}

func runsTransactions() {
	key := "{" + prefix + ":tx}"
	must(client.Del(key).Err())
	var sum *redis.IntCmd
	_, err := client.TxPipelined(func(pipe *redis.Pipeline) error {
		pipe.Set(key, 1, 0)
		sum = pipe.Incr(key)
		return nil
	})
	must(err)
	equal(sum.Val(), int64(2))
	tries := 0
	add := func(tx *redis.Tx) error {
		tries++
		seen, err := tx.Get(key).Int64()
		must(err)
		if tries == 1 {
			must(client.Set(key, 10, 0).Err())
		}
		_, err = tx.Pipelined(func(pipe *redis.Pipeline) error {
			pipe.Set(key, seen+1, 0)
			return nil
		})
		return err
	}
	equal(client.Watch(add, key), redis.TxFailedErr)
	must(client.Watch(add, key))
	equal(client.Get(key).Val(), "11")
}

func runsScripts() {
	script := redis.NewScript("return {KEYS[1], ARGV[1]}")
	for _, name := range keys("script", 20) {
		said, err := script.Run(client, []string{name}, "x").Result()
		must(err)
		equal(said, []interface{}{name, "x"})
	}
}

func blocks() {
	queue := prefix + ":queue"
	must(client.Del(queue).Err())
	equal(client.BLPop(time.Second, queue).Err(), redis.Nil)
	popped := make(chan []string)
	go func() { popped <- client.BLPop(10*time.Second, queue).Val() }()
	must(client.RPush(queue, "job").Err())
	equal(<-popped, []string{queue, "job"})
}

func subscribes() {
	listener, err := client.Subscribe(prefix + ":news")
	must(err)
	defer listener.Close()
	confirmed, err := listener.ReceiveTimeout(10 * time.Second)
	must(err)
	equal(confirmed.(*redis.Subscription).Count, 1)
	must(client.Publish(prefix+":news", "hello").Err())
	message, err := listener.ReceiveMessage()
	must(err)
	equal(message.Payload, "hello")
}

func scansEverything() {
	names := keys("scan", 200)
	for _, name := range names {
		must(client.Set(name, 1, 0).Err())
	}
	var found []string
	pages := client.Scan(0, prefix+":scan:*", 50).Iterator()
	for pages.Next() {
		found = append(found, pages.Val())
	}
	must(pages.Err())
	sort.Strings(found)
	equal(found, names)
}

func servesManyAtOnce() {
	var all sync.WaitGroup
	failures := make(chan error, 50)
	for _, name := range keys("task", 50) {
		all.Add(1)
		go func(name string) {
			defer all.Done()
			for turn := 0; turn < 40; turn++ {
				if err := client.Set(name, turn, 0).Err(); err != nil {
					failures <- err
					return
				}
				if found := client.Get(name).Val(); found != fmt.Sprint(turn) {
					failures <- errors.New(name + " is " + found)
					return
				}
			}
		}(name)
	}
	all.Wait()
	close(failures)
	must(<-failures)
}

func reportsAnErrorWhereItIs() {
	must(client.Set(prefix+":text", "x", 0).Err())
	err := client.HGet(prefix+":text", "field").Err()
	equal(err != nil && strings.HasPrefix(err.Error(), "WRONGTYPE"), true)
	equal(client.Ping().Val(), "PONG")
}

func worksInClusterMode() {
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{address}})
	defer cluster.Close()
	for _, name := range keys("cluster", 200) {
		must(cluster.Set(name, name, 0).Err())
		equal(cluster.Get(name).Val(), name)
	}
	first := keys("cluster", 200)[0]
	answers := make([]*redis.StringCmd, 200)
	_, err := cluster.Pipelined(func(pipe *redis.Pipeline) error {
		for number, name := range keys("cluster", 200) {
			answers[number] = pipe.Get(name)
		}
		return nil
	})
	must(err)
	equal(answers[0].Val(), first)
}

func main() {
	checks := []check{
		{"answersAPing", answersAPing},
		{"keepsBytes", keepsBytes},
		{"carriesALargeValue", carriesALargeValue},
		{"spansSlots", spansSlots},
		{"pipelinesInOrder", pipelinesInOrder},
		{"runsTransactions", runsTransactions},
		{"runsScripts", runsScripts},
		{"blocks", blocks},
		{"subscribes", subscribes},
		{"scansEverything", scansEverything},
		{"servesManyAtOnce", servesManyAtOnce},
		{"reportsAnErrorWhereItIs", reportsAnErrorWhereItIs},
	}
	if len(os.Args) < 4 {
		checks = append(checks, check{"worksInClusterMode", worksInClusterMode})
	}
	run(checks)
}
