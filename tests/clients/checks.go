// The checks that every Go client runs: each is a named function, run in turn, printed as it passes.

package main

import (
	"fmt"
	"os"
	"reflect"
)

type check struct {
	name string
	body func()
}

// run runs the checks in order and exits 1 where one failed.
func run(checks []check) {
	failed := 0
	for _, check := range checks {
		if problem := attempt(check.body); problem == nil {
			fmt.Println("ok", check.name)
		} else {
			failed = 1
			fmt.Println("FAILED", check.name)
			fmt.Fprintln(os.Stderr, check.name, problem)
		}
	}
	os.Exit(failed)
}

func attempt(body func()) (problem interface{}) {
	defer func() { problem = recover() }()
	body()
	return nil
}

// equal panics where two values differ.
func equal(found, expected interface{}) {
	if !reflect.DeepEqual(found, expected) {
		panic(fmt.Sprintf("%v, expected %v", found, expected))
	}
}

// must panics where there is an error.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
