package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sotto/node"
)

// The status socket: whoever may open it gets one JSON object. It is 0600 in a directory of 0700.
const (
	socketName    = "status.sock"
	statusTimeout = 5 * time.Second
	maxStatus     = 1 << 20
)

// status is what the socket answers.
type status struct {
	node.VolunteerStatus
	Mailbox *mailboxStatus `json:"mailbox,omitempty"`
}

func (a *app) socket() string { return filepath.Join(a.home, socketName) }

// running tells whether a volunteer answers in this home.
func (a *app) running() bool {
	_, err := a.askStatus()
	return err == nil
}

// serveStatus answers at the socket until ctx ends; the channel closes when it no longer does.
func (a *app) serveStatus(ctx context.Context, now func() status) (<-chan struct{}, error) {
	if err := os.Remove(a.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", a.socket())
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(a.socket(), 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		defer close(done)
		defer stop()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(statusTimeout))
			_ = json.NewEncoder(c).Encode(now())
			_ = c.Close()
		}
	}()
	return done, nil
}

func (a *app) askStatus() (s status, err error) {
	c, err := net.DialTimeout("unix", a.socket(), statusTimeout)
	if err != nil {
		return s, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(statusTimeout))
	err = json.NewDecoder(io.LimitReader(c, maxStatus)).Decode(&s)
	return s, err
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Tell how the running volunteer stands", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		s, err := a.askStatus()
		if err != nil {
			return failed(exitNotUp, "not_running", "Start it: sotto-mailbox serve --home "+a.home, fmt.Errorf("no volunteer answers in %s", a.home))
		}
		if a.json {
			return json.NewEncoder(a.env.Stdout).Encode(s)
		}
		var b strings.Builder
		fmt.Fprintf(&b, "● serving · %d connections, %d to the DHT · %d records · %d other volunteers\n", s.Connections, s.DHTConnections, s.Records, s.Volunteers)
		for _, addr := range bestFirst(s.Bootstrap) {
			fmt.Fprintf(&b, "  bootstrap %s\n", addr)
		}
		if m := s.Mailbox; m != nil {
			fmt.Fprintf(&b, "  mailbox %d boxes · %d envelopes, %d of %d MiB · %d owners wait\n", m.Boxes, m.Waiting, m.Bytes>>20, m.Ceiling>>20, m.Server.Waiting)
			for _, what := range m.Wrong {
				fmt.Fprintf(&b, "  mailbox: %s\n", what)
			}
			for _, refused := range []map[string]uint64{m.Server.Refused, m.Refused} {
				for name, n := range refused {
					s.Refused["mailbox: "+name] = n
				}
			}
		}
		var names []string
		for name := range s.Refused {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			fmt.Fprintf(&b, "  refused %d × %s\n", s.Refused[name], name)
		}
		_, err = io.WriteString(a.env.Stdout, b.String())
		return err
	}}
}
