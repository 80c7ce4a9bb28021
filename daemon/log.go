package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/lmittmann/tint"

	"sotto/control"
)

// maxLog is when a log is put aside at the start; one older one is kept.
const maxLog = 4 << 20

// OpenLog appends to the home's log and, when also is not nil, writes there what a person watches. Close it in the end.
func OpenLog(h Home, minLevel Level, also io.Writer) (*slog.Logger, io.Closer, error) {
	level := slog.Level(minLevel)
	if err := h.makeDirs(); err != nil {
		return nil, nil, err
	}
	path := h.Log()
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, nil, fmt.Errorf("put the old log aside: %w", err)
		}
	}
	f, err := plain(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return nil, nil, fmt.Errorf("open the log: %w", err)
	}
	var h2 slog.Handler = slog.NewTextHandler(f, &slog.HandlerOptions{Level: level})
	if also != nil {
		h2 = both{h2, tint.NewTextHandler(also, &tint.Options{Level: min(level, slog.LevelDebug), NoColor: true})}
	}
	return slog.New(h2), f, nil
}

// OpenOutput opens, empty, the file that a node in the background writes its words to.
func OpenOutput(h Home) (*os.File, error) {
	f, err := plain(h.Output(), os.O_CREATE|os.O_TRUNC|os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("open the node's output: %w", err)
	}
	return f, nil
}

func plain(path string, flag int) (*os.File, error) {
	f, err := openPlain(path, flag)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notPlain(path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func notPlain(path string) error {
	return control.Errorf(control.ExitFailed, "unsafe_file", "Move it away: sotto makes a file of its own there.", "%s is a link or something else that is no plain file", path)
}

// both hands every record to two handlers.
type both struct{ a, b slog.Handler }

func (h both) Enabled(ctx context.Context, l slog.Level) bool {
	return h.a.Enabled(ctx, l) || h.b.Enabled(ctx, l)
}

func (h both) Handle(ctx context.Context, r slog.Record) error {
	var errs []error
	for _, x := range []slog.Handler{h.a, h.b} {
		if x.Enabled(ctx, r.Level) {
			errs = append(errs, x.Handle(ctx, r.Clone()))
		}
	}
	return errors.Join(errs...)
}

func (h both) WithAttrs(attrs []slog.Attr) slog.Handler {
	return both{h.a.WithAttrs(attrs), h.b.WithAttrs(attrs)}
}

func (h both) WithGroup(name string) slog.Handler {
	return both{h.a.WithGroup(name), h.b.WithGroup(name)}
}
