// Command sotto-mailbox is the volunteer's binary: it helps people find and reach each other, and can open nothing.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"sotto/operator"
)

func main() {
	// QUIC would complain on stderr about a kernel setting; the operator's guide names it instead.
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	program, err := os.Executable()
	if err != nil {
		program = ""
	}
	return operator.Main(ctx, os.Args[1:], operator.Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Program: program})
}
