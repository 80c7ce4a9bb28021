package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sotto/internal/disk"
	"sotto/mailbox"
)

// backup writes the stream of a backup.
func (k keeper) backup(ctx context.Context, w io.Writer) error {
	if k.queue == nil {
		return nil // without its end it is no backup
	}
	_, err := k.queue.Backup(ctx, w)
	return err
}

func (a *app) backupCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "backup DIR", Short: "Make a copy of everything, while serving", Args: cobra.ExactArgs(1),
		Long: "Make a copy of the mailbox at one moment, of the keys and of config.toml in a new directory, while the volunteer\n" +
			"serves, and verify it. DIR must not exist. To restore: sotto-mailbox serve --home DIR, or move it where the home was;\nthen never start the old one again. The keys in it make whoever has it this volunteer.",
		Example: "  sotto-mailbox backup /srv/backup/$(date +%F)"}
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.backUp(cmd.Context(), args[0]) }
	return cmd
}

// backUp fills a directory beside the wanted one, and gives it its name when all of it is on disk and was read again.
func (a *app) backUp(ctx context.Context, dir string) (err error) {
	dir = filepath.Clean(dir)
	if statOf(dir) == nil {
		return failed(exitUsage, "exists", "Name a directory that does not exist yet.", fmt.Errorf("%s exists", dir))
	}
	part, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".part-") // 0700
	if err != nil {
		return failed(exitFailed, "backup", "The directory around DIR must exist, and you must be allowed to write there.", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(part))
		}
	}()
	if err := a.fetchBackup(ctx, filepath.Join(part, "mailbox")); err != nil {
		return err
	}
	for _, name := range []string{serviceKeyName, dhtKeyName, configName} {
		if err := copyFile(filepath.Join(a.home, name), filepath.Join(part, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed(exitFailed, "backup", "", fmt.Errorf("copy %s: %w", name, err))
		}
	}
	r, err := mailbox.VerifyQueue(filepath.Join(part, "mailbox"))
	if err == nil && len(r.Faults) > 0 {
		err = fmt.Errorf("%s, the first: %s", plural(len(r.Faults), "fault", "faults"), r.Faults[0])
	}
	if err != nil {
		return failed(exitFailed, "damaged", "The mailbox itself may be damaged: stop the volunteer, copy its home, then: sotto-mailbox verify", fmt.Errorf("the copy does not hold what it should: %w", err))
	}
	if err = disk.SyncDir(part); err == nil {
		err = os.Rename(part, dir)
	}
	if err == nil {
		err = disk.SyncDir(filepath.Dir(dir))
	}
	if err != nil {
		return failed(exitFailed, "backup", "", err)
	}
	return a.print(map[string]any{"dir": dir, "boxes": r.Boxes, "envelopes": r.Envelopes, "bytes": r.Bytes},
		"backed up to %s: %s, %s (%s), keys and config.toml; verified · it holds your keys: keep it where nobody else reads it\n",
		dir, plural(r.Boxes, "box", "boxes"), plural(r.Envelopes, "message", "messages"), size(r.Bytes))
}

// fetchBackup has the stream from the running volunteer, or from the files where none runs.
func (a *app) fetchBackup(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	c, stream, err := a.dial(ctx, order{Do: orderBackup}, nil, workTimeout)
	if errors.Is(err, errNotRunning) {
		return a.offline(ctx, func(ctx context.Context, k keeper) error {
			r, w := io.Pipe()
			made := make(chan error, 1)
			go func() { made <- errors.Join(w.CloseWithError(k.backup(ctx, w))) }()
			err := mailbox.RestoreQueue(ctx, dir, r)
			_ = r.CloseWithError(err)
			return asBackup(errors.Join(err, <-made))
		})
	}
	if err != nil {
		return asBackup(err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	return asBackup(errors.Join(mailbox.RestoreQueue(ctx, dir, stream), c.Close()))
}

func asBackup(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mailbox.ErrCutBackup), errors.Is(err, mailbox.ErrNoBackup):
		return failed(exitFailed, "backup", "The volunteer ended meanwhile, or keeps no mailbox. See: sotto-mailbox status", err)
	}
	return failed(exitFailed, "backup", "Is there room, and may you write there?", err)
}

// copyFile copies a small file with mode 0600, synced.
func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return disk.Replace(to, b, func(string) {})
}
