package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/muesli/cancelreader"

	"sotto/control"
)

// moment is how long somebody waits without wondering what for.
const moment = time.Second

// waiting tells somebody at a terminal what is being waited for, if that takes longer than a moment; the caller calls stop when it
// is over.
func (a *app) waiting(ctx context.Context, format string, args ...any) (stop func()) {
	if a.json || !tty(a.env.Stderr) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if a.clock.Wait(ctx, moment) == nil {
			a.say(format, args...)
		}
	}()
	return func() { cancel(); <-done }
}

// input is stdin for as long as the context lasts: a signal ends a read that waits for somebody to type.
type input struct {
	in   cancelreader.CancelReader
	stop func() bool
	why  atomic.Pointer[error] // the context's error, once it has one
	end  io.Writer             // gets the line's end when a signal cut it off; nil: nobody looks
}

// input opens stdin; whoever opens it closes it.
func (a *app) input(ctx context.Context) (*input, error) {
	in, err := cancelreader.NewReader(a.env.Stdin)
	if err != nil { // a file, or nothing: what the kernel cannot wait for does not make anybody wait
		if in, err = cancelreader.NewReader(struct{ io.Reader }{a.env.Stdin}); err != nil {
			return nil, fmt.Errorf("read what is typed: %w", err)
		}
	}
	i := &input{in: in}
	if tty(a.env.Stdin) {
		i.end = a.env.Stderr
	}
	i.stop = context.AfterFunc(ctx, func() {
		err := ctx.Err()
		i.why.Store(&err)
		in.Cancel()
	})
	return i, nil
}

// Read ends with the context's error as soon as that has one, and leaves the line on which the signal was typed.
func (i *input) Read(b []byte) (int, error) {
	n, err := i.in.Read(b)
	if why := i.why.Load(); why != nil && errors.Is(err, cancelreader.ErrCanceled) {
		if i.end != nil {
			_, _ = fmt.Fprintln(i.end)
		}
		return n, *why
	}
	return n, err
}

// Close gives stdin back to whoever reads next.
func (i *input) Close() {
	i.stop()
	_ = i.in.Close()
}

// readLine reads one line and not a byte more: the next question reads from the same terminal.
func (a *app) readLine(ctx context.Context) (string, error) {
	in, err := a.input(ctx)
	if err != nil {
		return "", err
	}
	defer in.Close()
	return bufio.NewReader(io.LimitReader(oneByte{in}, 4096)).ReadString('\n')
}

// oneByte keeps a buffered reader from taking more than its line.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.r.Read(b[:min(1, len(b))]) }

// readAll reads what comes from stdin to its end, at most so many bytes of it; somebody at a terminal is told what is awaited.
func (a *app) readAll(ctx context.Context, what string, most int64) ([]byte, error) {
	if tty(a.env.Stdin) {
		a.say("Type or paste %s, then Ctrl-D on a line of its own:", what)
	}
	in, err := a.input(ctx)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return io.ReadAll(io.LimitReader(in, most))
}

// ask puts a question and reads one line. It is only called when somebody is there (mayAsk).
func (a *app) ask(ctx context.Context, question string) (string, error) {
	_, _ = fmt.Fprint(a.env.Stderr, question)
	in, err := a.readLine(ctx)
	if err == io.EOF && in == "" {
		_, _ = fmt.Fprintln(a.env.Stderr)
		return "", errNoAnswer()
	}
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	return strings.TrimSpace(in), nil
}

func errNoAnswer() error {
	return control.Errorf(control.ExitUsage, "no_answer", "Run it again and answer, or give the answer with a flag: --help shows them.", "the question was not answered")
}

// askSecret reads a line without showing it; io.EOF says that nobody answered.
func (a *app) askSecret(ctx context.Context, question string) ([]byte, error) {
	_, _ = fmt.Fprint(a.env.Stderr, question)
	show, err := hideTyping(a.env.Stdin.Fd())
	if err != nil {
		return nil, fmt.Errorf("hide the passphrase: %w", err)
	}
	in, err := a.readLine(ctx)
	show()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("read the passphrase: %w", ctx.Err())
	}
	_, _ = fmt.Fprintln(a.env.Stderr) // the one that was typed was not shown
	if err != nil && (err != io.EOF || in == "") {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	return []byte(strings.TrimSuffix(strings.TrimSuffix(in, "\n"), "\r")), nil
}

// confirm asks a question that is answered with yes or no; anything else is no.
func (a *app) confirm(ctx context.Context, question string) (bool, error) {
	in, err := a.ask(ctx, question+" [y/N] ")
	if errors.Is(err, &control.Error{Code: "no_answer"}) {
		return false, nil
	}
	return strings.EqualFold(in, "y") || strings.EqualFold(in, "yes"), err
}
