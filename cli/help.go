package cli

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"sotto/control"
	"sotto/daemon"
	"sotto/internal/clock"
)

// topics are what help explains besides the commands.
func topics() map[string]string {
	return map[string]string{
		"formatting":  helpFormatting,
		"exit-codes":  helpExitCodes,
		"environment": helpEnvironment,
		"privacy":     helpPrivacy,
	}
}

const helpFormatting = `Output

People get short tables and local times. Programs, that is whatever reads from a pipe, get tab-separated columns without
headings and times in UTC (RFC 3339); only chat prints the same for both. Results go to stdout, everything else to stderr; -q leaves out all but results and errors.

--json prints one object, or one per line for streams and lists of messages. Fields are only added, never renamed. Characters
that could harm a terminal are written as \u escapes, which is the same JSON. Errors are one object on stderr:
  {"error":{"code":"contact_not_found","message":"…","hint":"…","exit":3}}

--jq EXPR prints what a jq expression makes of the JSON; strings come without quotes, and exactly as they were written when
they go into a pipe. What others wrote is data: do not hand it to a shell.

  sotto read bob --json --jq 'select(.state != "read") | .text'

States of a message are queued, held, delivered, read, expired, failed and cancelled. Signs: · queued, ⇡ held, ✓✓ delivered,
✗ not delivered. --ascii turns signs into words.

Names may be shortened to a unique beginning, and so may message ids.
`

const helpExitCodes = `Exit codes

  0    done
  1    failed; doctor: something is wrong
  2    wrong use: unknown command or flag, missing argument, bad config
  3    no such contact, message or invite
  4    the node is not running, or cannot be reached
  5    not in time: the state asked for was not reached, nothing came or nobody answered before --timeout was over; nothing is
       lost by it, a message stays queued and an invite that was followed is tried again while sotto runs
  6    the identity is locked: wrong or missing passphrase
  7    the key changed, or is not verified, and --require-verified was given
  8    refused: blocked, too large, disk full
  130  interrupted
`

const helpEnvironment = `Environment

  SOTTO_HOME             keep everything in this directory         (--home)
  SOTTO_PROFILE          use the identity of this name             (--profile)
  SOTTO_NO_START         only use a running node                   (--no-start)
  SOTTO_PASSPHRASE_FILE  read the passphrase from this file        (--passphrase-file)
  NO_COLOR               no colours                                (--color never)
  TERM=dumb              plain lines
  XDG_CONFIG_HOME, XDG_DATA_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR
                         where files are when SOTTO_HOME is not set; see: sotto config path

Flags win over the environment, the environment over config.toml, config.toml over the defaults. Secrets are never taken from
the command line or from the environment: a passphrase is typed or comes from a file that only you can read.
`

const helpPrivacy = `Privacy

What you write is encrypted on your computer and can be opened only on the other person's. Nobody keeps accounts.

What others can see:
  your contacts     that you are there, when they are connected to you, and your network address, unless network.relay_only is set
  volunteers        your network address and when you are online; which addresses put and ask for records; a relay sees which nodes talk; never what you say
  the network       that this computer speaks the protocol, with which addresses, how much and when
  whoever has your unlocked computer: everything

An invite link is a secret: whoever has it first becomes your contact. Compare keys (sotto verify) to be sure that nobody took a
friend's place. Nothing phones home, and there is no check for updates.
`

// helpCommand explains commands and topics alike.
func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND | TOPIC]", Short: "Explain a command, or formatting, exit-codes, environment, privacy",
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if body, ok := topics()[args[0]]; ok {
					_, err := io.WriteString(a.env.Stdout, body)
					return err
				}
			}
			target, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 && target == cmd.Root() {
				return unknownTopic(cmd.Root(), strings.Join(args, " "))
			}
			target.InitDefaultHelpFlag()
			return target.Help()
		}),
	}
}

func unknownTopic(root *cobra.Command, typed string) error {
	var words []string
	for name := range topics() {
		words = append(words, name)
	}
	sort.Strings(words)
	hint := "Commands: sotto --help   Topics: " + strings.Join(words, ", ")
	for _, c := range root.Commands() {
		words = append(words, c.Name())
	}
	if near := daemon.Nearest(typed, words); near != "" {
		hint = "Did you mean: sotto help " + near
	}
	return usage(hint, "no help for %q", line(typed))
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version", Args: exactly(),
		RunE: a.run(func(*cobra.Command, []string) error {
			v := map[string]any{"version": a.env.Version, "api": control.APIVersion, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH}
			return a.result(v, func(w io.Writer) {
				_, _ = io.WriteString(w, a.versionLine())
			})
		}),
	}
}

// versionLine is what version and --version print.
func (a *app) versionLine() string {
	return fmt.Sprintf("sotto %s (API %d, %s %s/%s)\n", a.env.Version, control.APIVersion, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// probeCommand is the guard child of the store; people have no use for it.
func (a *app) probeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "probe-store DIR", Hidden: true, Args: exactly("DIR"),
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			return daemon.Probe(cmd.Context(), args[0], a.env.Stdin)
		}),
	}
}

// FromOS is the world of a real process.
func FromOS(version string) Env {
	program, err := os.Executable()
	if err != nil {
		program = ""
	}
	return Env{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Version: version, Program: program, Clock: clock.FromEnv()}
}
