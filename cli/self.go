package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"sotto/control"
	"sotto/daemon"
	"sotto/identity"
)

func (a *app) identityCommand() *cobra.Command {
	c := &cobra.Command{Use: "identity", Short: "Show and keep who you are", RunE: a.run(a.showIdentity)}
	c.AddCommand(
		&cobra.Command{Use: "show", Short: "Show your name and keys", Args: exactly(), RunE: a.run(a.showIdentity)},
		&cobra.Command{
			Use: "backup [FILE]", Short: "Write down the 24 words that are your identity", Args: atMost("FILE"),
			Long: "Prints the 24 words, or writes them into a new file. Whoever has them can become you: write them on paper and keep it safe.\n" +
				"They keep who you are for a later version: this one cannot restore from them yet. They never bring messages back.",
			RunE: a.run(a.backup),
		},
		a.passphraseCommand(),
	)
	return c
}

// setCommand changes what the program keeps for its person; config.toml is never written.
func (a *app) setCommand() *cobra.Command {
	return &cobra.Command{
		Use: "set [KEY VALUE]", Short: "Show or change a setting", Args: cobra.MaximumNArgs(2),
		Long:    "read-marks on|off   tell contacts which of their messages you have read (off unless you turn it on)",
		Example: "sotto set\nsotto set read-marks on",
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return usage("Write it like: sotto set read-marks on", "a value for %s is missing", line(args[0]))
			}
			return a.with(cmd.Context(), needStore, func(l *link) error {
				var s control.Settings
				var err error
				if len(args) == 0 {
					s, err = control.Call[control.Settings](cmd.Context(), l.Client, "setting.list", control.None{})
				} else {
					s, err = control.Call[control.Settings](cmd.Context(), l.Client, "setting.set", control.Setting{Key: args[0], Value: args[1]})
				}
				if err != nil {
					return err
				}
				return a.result(s, func(w io.Writer) {
					a.table(w, []string{"KEY", "VALUE"}, [][]string{{"read-marks", onOff(s.ReadMarks)}})
				})
			})
		}),
	}
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (a *app) showIdentity(cmd *cobra.Command, _ []string) error {
	return a.with(cmd.Context(), needStore, func(l *link) error {
		id, err := control.Call[control.Identity](cmd.Context(), l.Client, "identity.show", control.None{})
		if err != nil {
			return err
		}
		return a.result(id, func(w io.Writer) {
			_, _ = fmt.Fprintf(w, "name\t%s\naccount\t%s\ndevice\t%s\nsince\t%s\n", line(id.Name), id.Account, id.Device, a.stamp(id.Created))
		})
	})
}

// backup reads the key file itself: the words never pass the local API.
func (a *app) backup(cmd *cobra.Command, args []string) error {
	home, err := a.place()
	if err != nil {
		return err
	}
	keys, err := daemon.OpenKeyFile(home, a.unlock(cmd.Context()))
	if err != nil {
		return err
	}
	words := keys.Seed().Words()
	if len(args) == 1 && args[0] != "-" {
		return a.keepWords(args[0], words)
	}
	a.say("These 24 words are your identity. Write them on paper; whoever has them can become you.")
	return a.result(map[string]string{"words": words}, func(w io.Writer) {
		if !tty(a.env.Stdout) {
			_, _ = fmt.Fprintln(w, words)
			return
		}
		for i, word := range strings.Fields(words) {
			_, _ = fmt.Fprintf(w, "%2d %-10s", i+1, word)
			if i%4 == 3 {
				_, _ = fmt.Fprintln(w)
			}
		}
	})
}

func (a *app) keepWords(path, words string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return control.Errorf(control.ExitFailed, "file_exists", "Choose a new file.", "cannot write the words: %v", err)
	}
	_, err = fmt.Fprintln(f, words)
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("write the words into %s: %w", path, err)
	}
	return a.result(map[string]string{"file": path}, func(io.Writer) { a.say("wrote %s; whoever reads it can become you", path) })
}

func (a *app) passphraseCommand() *cobra.Command {
	var file string
	var keyring, unencrypted bool
	c := &cobra.Command{
		Use: "passphrase", Short: "Change how your key is locked", Args: exactly(),
		Long: "Asks for the old passphrase and twice for the new one. The old one comes from --passphrase-file where nobody can be asked.",
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			home, err := a.place()
			if err != nil {
				return err
			}
			keys, err := daemon.OpenKeyFile(home, a.unlock(cmd.Context()))
			if err != nil {
				return err
			}
			lock, err := a.newLock(cmd.Context(), home, file, keyring, unencrypted)
			if err != nil {
				return err
			}
			if err := keys.Rewrap(lock); err != nil {
				return control.Errorf(control.ExitFailed, "not_locked_anew", "The old lock still holds; try again, or choose another way.", "%v", err)
			}
			return a.result(map[string]string{"lock": keys.Lock().String()}, func(io.Writer) { a.say("the key is now locked with: %s", keys.Lock()) })
		}),
	}
	c.Flags().StringVar(&file, "new-passphrase-file", "", "read the new passphrase from this file")
	c.Flags().BoolVar(&keyring, "keyring", false, "keep the key in the system keyring")
	c.Flags().BoolVar(&unencrypted, "unencrypted", false, "leave the key file open to whoever can read it")
	return c
}

func (a *app) newLock(ctx context.Context, home daemon.Home, file string, keyring, unencrypted bool) (identity.Lock, error) {
	switch {
	case keyring && unencrypted || file != "" && (keyring || unencrypted):
		return nil, usage("Choose one.", "--new-passphrase-file, --keyring and --unencrypted exclude one another")
	case unencrypted:
		return identity.Unencrypted(), nil
	case keyring:
		return identity.Keyring("sotto", home.Profile), nil
	case file != "":
		p, err := daemon.ReadPassphrase(file)
		return identity.Passphrase(p), err
	case !a.mayAsk():
		return nil, control.Errorf(control.ExitLocked, "lock_missing", "Add --new-passphrase-file FILE, or --keyring, or --unencrypted.", "the new lock was not said and nobody can be asked")
	}
	return a.askLock(ctx, home)
}

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show where files are and what the config says", RunE: a.run(func(*cobra.Command, []string) error { return a.showConfig(false) })}
	var defaults bool
	show := &cobra.Command{Use: "show", Short: "Show the config in force, with all keys", Args: exactly(),
		RunE: a.run(func(*cobra.Command, []string) error { return a.showConfig(defaults) })}
	show.Flags().BoolVar(&defaults, "defaults", false, "show what holds where config.toml says nothing, without reading it")
	c.AddCommand(
		&cobra.Command{Use: "path", Short: "Show where everything is", Args: exactly(), RunE: a.run(a.showPaths)},
		show,
		&cobra.Command{Use: "check", Short: "Check config.toml", Args: exactly(), RunE: a.run(func(*cobra.Command, []string) error {
			home, err := a.place()
			if err != nil {
				return err
			}
			cfg, err := daemon.LoadConfig(home.Config)
			if err != nil {
				return err
			}
			_, err = os.Stat(home.Config)
			exists, doubts := err == nil, cfg.Doubts()
			return a.result(map[string]any{"file": home.Config, "exists": exists, "ok": true, "warnings": append([]control.Warning{}, doubts...)}, func(io.Writer) {
				for _, w := range doubts {
					a.say("! %s → %s", line(w.Text), line(w.Fix))
				}
				if len(doubts) > 0 {
					return
				}
				if exists {
					a.say("%s is fine", home.Config)
					return
				}
				a.say("there is no %s, so the defaults hold: sotto config show", home.Config)
			})
		})},
	)
	return c
}

func (a *app) showPaths(*cobra.Command, []string) error {
	home, err := a.place()
	if err != nil {
		return err
	}
	paths := []struct{ name, path string }{{"config", home.Config}, {"data", home.Data}, {"key", home.KeyFile()}, {"log", home.Log()}, {"socket", home.Socket}}
	obj := map[string]string{}
	for _, p := range paths {
		obj[p.name] = p.path
	}
	return a.result(obj, func(w io.Writer) {
		for _, p := range paths {
			_, _ = fmt.Fprintf(w, "%s\t%s\n", p.name, p.path)
		}
	})
}

func (a *app) showConfig(defaults bool) error {
	home, err := a.place()
	if err != nil {
		return err
	}
	cfg := daemon.DefaultConfig()
	if !defaults {
		if cfg, err = daemon.LoadConfig(home.Config); err != nil {
			return err
		}
	}
	return a.result(cfg.Tree(), func(w io.Writer) { _, _ = io.WriteString(w, cfg.String()) })
}
