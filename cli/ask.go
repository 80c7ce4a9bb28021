package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/charmbracelet/x/term"

	"sotto/control"
)

// ask puts a question and reads one line. It is only called when somebody is there (mayAsk).
func (a *app) ask(question string) (string, error) {
	_, _ = fmt.Fprint(a.env.Stderr, question)
	in, err := bufio.NewReader(io.LimitReader(oneByte{a.env.Stdin}, 4096)).ReadString('\n')
	if err == io.EOF && in == "" {
		_, _ = fmt.Fprintln(a.env.Stderr)
		return "", control.Errorf(control.ExitUsage, "no_answer", "Run it again and answer, or give the answer with a flag: --help shows them.", "the question was not answered")
	}
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	return strings.TrimSpace(in), nil
}

// oneByte keeps a buffered reader from taking more than its line: the next question reads from the same terminal.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.r.Read(b[:min(1, len(b))]) }

// askSecret reads a line without showing it.
func (a *app) askSecret(question string) ([]byte, error) {
	_, _ = fmt.Fprint(a.env.Stderr, question)
	in, err := term.ReadPassword(a.env.Stdin.Fd())
	_, _ = fmt.Fprintln(a.env.Stderr)
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	return in, nil
}

// confirm asks a question that is answered with yes or no; anything else is no.
func (a *app) confirm(question string) (bool, error) {
	in, err := a.ask(question + " [y/N] ")
	if errors.Is(err, &control.Error{Code: "no_answer"}) {
		return false, nil
	}
	return strings.EqualFold(in, "y") || strings.EqualFold(in, "yes"), err
}
