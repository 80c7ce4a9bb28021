// Package operator is the volunteer's commands: quickstart, serve, and those that look after what serves.
//
// Begin with Main, then serve.go; commands that ask what serves go through socket.go to obey.go. Its binary holds no code that could open a message: a test lists its dependencies.
package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/adrg/xdg"
	"github.com/spf13/cobra"

	"sotto/node"
)

// Env is the world a command runs in.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Program        string // this binary, to look at damaged files in a child; "": never
	// Serving is called once the volunteer serves; tests wait for it.
	Serving func(node.VolunteerStatus)
}

// Exit codes, the same as sotto's.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitNotUp   = 4
	exitRefused = 8
)

// failure is an error with what to do next and the exit code it leads to.
type failure struct {
	code, hint string
	exit       int
	err        error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failed(exit int, code, hint string, err error) error {
	return &failure{code: code, hint: hint, exit: exit, err: err}
}

// app is one run of the command.
type app struct {
	env  Env
	home string
	json bool
}

// Main runs one command and returns its exit code; ctx ends on SIGINT and SIGTERM.
func Main(ctx context.Context, args []string, env Env) int {
	a := &app{env: env}
	root := a.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{code: "usage", hint: "See: sotto-mailbox help", exit: exitUsage, err: err}
	}
	a.report(f)
	return f.exit
}

func (a *app) report(f *failure) {
	if a.json {
		_ = json.NewEncoder(a.env.Stderr).Encode(map[string]any{
			"error": map[string]any{"code": f.code, "message": f.Error(), "hint": f.hint, "exit": f.exit},
		})
		return
	}
	_, _ = fmt.Fprintf(a.env.Stderr, "sotto-mailbox: %s\n", f.Error())
	if f.hint != "" {
		_, _ = fmt.Fprintln(a.env.Stderr, f.hint)
	}
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "sotto-mailbox",
		Short:         "Help people on sotto find and reach each other",
		Long:          "sotto-mailbox runs a volunteer: a bootstrap and DHT server, a relay, a check of reachability, and a mailbox for\npeople who are away. It sees addresses, sizes and times, and when it relays which nodes talk. It cannot see who they\nare, or what they say.",
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetOut(a.env.Stdout)
	root.SetErr(a.env.Stderr)
	root.PersistentFlags().StringVar(&a.home, "home", a.defaultHome(), "directory of keys, config.toml, records and mail")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON")
	config := &cobra.Command{Use: "config", Short: "Look at the configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	config.AddCommand(a.configCheckCommand())
	root.AddCommand(a.quickstartCommand(), a.serveCommand(), a.statusCommand(), a.statsCommand(), a.quotaCommand(), a.clientsCommand(), a.policyCommand(),
		a.drainCommand(), a.resumeCommand(), a.backupCommand(), a.verifyCommand(), a.healthCommand(), config, a.versionCommand(), a.probeQueueCommand())
	return root
}

// defaultHome is systemd's state directory where there is one, for root the one that the unit uses, or the user's data directory.
func (a *app) defaultHome() string {
	if d := a.env.Getenv("STATE_DIRECTORY"); d != "" {
		return d
	}
	if _, err := os.Stat(systemHome); err == nil && os.Geteuid() == 0 {
		return systemHome
	}
	return filepath.Join(xdg.DataHome, "sotto-mailbox")
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		version, goVersion := "unknown", "unknown"
		if info, ok := debug.ReadBuildInfo(); ok {
			version, goVersion = info.Main.Version, info.GoVersion
		}
		return a.print(map[string]string{"version": version, "go": goVersion}, "sotto-mailbox %s (%s)\n", version, goVersion)
	}}
}

// print writes the object in JSON mode, the text otherwise.
func (a *app) print(object any, format string, args ...any) error {
	if a.json {
		return json.NewEncoder(a.env.Stdout).Encode(object)
	}
	_, err := fmt.Fprintf(a.env.Stdout, format, args...)
	return err
}
