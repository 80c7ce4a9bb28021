// Package cli is the command line: flags → options → one call to the node → text or JSON.
//
// Begin with Main and the command tree here; then link.go (which node answers, and who starts it), print.go (what people and
// programs read) and a file per command.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"charm.land/fang/v2"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sotto/control"
	"sotto/daemon"
	"sotto/internal/clock"
)

// Env is the world a command runs in.
type Env struct {
	Args    []string // without the program's name
	Stdin   *os.File
	Stdout  *os.File
	Stderr  *os.File
	Getenv  func(string) string
	Version string
	Program string // the binary, for the guard child; "" does without
	Clock   clock.Clock
}

// Main runs one command and returns its exit code.
func Main(ctx context.Context, env Env) int {
	if err := daemon.Harden(); err != nil {
		_, _ = fmt.Fprintln(env.Stderr, "sotto:", err)
		return control.ExitFailed
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	a := &app{env: env, clock: env.Clock}
	root := a.root()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	a.colour(env.Args)
	if err := a.helpForNothing(root); err != nil {
		return a.report(ctx, err)
	}
	if !tty(env.Stdout) {
		out := &unpadded{w: env.Stdout}
		defer out.flush()
		root.SetOut(out)
	}
	err := fang.Execute(ctx, root, fang.WithVersion(env.Version), fang.WithErrorHandler(func(io.Writer, fang.Styles, error) {}))
	if err == nil {
		err = a.err
	}
	return a.report(ctx, err)
}

// app is one run of the program.
type app struct {
	commands map[string]bool // the names of all commands
	env      Env
	clock    clock.Clock
	err      error // what the command ended with; kept from fang, which would ask the terminal for its colours first

	json, quiet, verbose, noInput, noStart, ascii bool
	jq, home, profile, socket, color, passFile    string
	timeout                                       time.Duration
	passphrase                                    []byte // asked for once
	made                                          bool   // the identity was made by this run, or its flags were told to be unused
	create                                        createFlags
	open                                          string // the key file that is made without a lock, until that was told
}

// root is the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "sotto [INVITE]",
		Short: "Messages between people, with nobody in between",
		Long: "sotto sends messages from your computer to your friends' computers, encrypted end to end, without accounts or servers of a company.\n\n" +
			"Run it without arguments to begin. Topics: sotto help formatting, exit-codes, environment, privacy.",
		Example: "sotto\nsotto invite\nsotto add sotto:i/…\nsotto send bob \"lunch at 1?\"",
		RunE:    a.run(a.begin),
		Args:    cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if word := firstWord(c, a.env.Args); !c.HasParent() && word != "" && word != "-" && !looksLikeInvite(word) {
			return unknownCommand(c, word) // its flags are not the root's: the word is the mistake
		}
		return flagError(c, err)
	})
	root.SetVersionTemplate(a.versionLine())
	a.globals(root.PersistentFlags())
	a.create.register(root.Flags())
	for _, g := range []struct{ id, title string }{{"talk", "talk"}, {"people", "people"}, {"node", "node"}, {"self", "self"}, {"meta", "meta"}} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
	}
	add := func(group string, list ...*cobra.Command) {
		for _, c := range list {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("talk", a.chatCommand(), a.sendCommand(), a.inboxCommand(), a.readCommand(), a.watchCommand(), a.waitCommand(), a.traceCommand())
	add("people", a.inviteCommand(), a.addCommand(), a.requestsCommand(), a.acceptCommand(), a.rejectCommand(), a.contactsCommand(), a.verifyCommand())
	add("node", a.upCommand(), a.downCommand(), a.statusCommand(), a.peersCommand(), a.mailboxesCommand(), a.doctorCommand())
	add("self", a.identityCommand(), a.setCommand())
	add("meta", a.demoCommand(), a.configCommand(), a.versionCommand())
	a.commands = map[string]bool{}
	for _, c := range root.Commands() {
		a.commands[c.Name()] = true
	}
	root.AddCommand(a.probeCommand())
	root.SetHelpCommandGroupID("meta")
	root.SetCompletionCommandGroupID("meta")
	root.SetHelpCommand(a.helpCommand())
	root.InitDefaultCompletionCmd() // here, so that it is guarded as all others are
	if c, _, err := root.Find([]string{"completion"}); err == nil && c != root {
		c.RunE = a.run(func(cmd *cobra.Command, _ []string) error { return cmd.Help() })
	}
	guard(root)
	return root
}

func (a *app) globals(f *pflag.FlagSet) {
	f.BoolVar(&a.json, "json", false, "print JSON, one object a line")
	f.StringVar(&a.jq, "jq", "", "print what this jq expression makes of the JSON")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but results and errors")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say what is going on")
	f.StringVar(&a.home, "home", "", "keep everything in this directory (SOTTO_HOME)")
	f.StringVar(&a.profile, "profile", "", "use the identity of this name (SOTTO_PROFILE)")
	f.StringVar(&a.socket, "socket", "", "reach the node at this path")
	f.StringVar(&a.passFile, "passphrase-file", "", "read the passphrase from this file (SOTTO_PASSPHRASE_FILE)")
	f.BoolVar(&a.noInput, "no-input", false, "never ask anything")
	f.BoolVar(&a.noStart, "no-start", false, "only use a running node (SOTTO_NO_START)")
	f.DurationVar(&a.timeout, "timeout", 20*time.Second, "give up waiting after this time; 0 waits on")
	f.StringVar(&a.color, "color", "auto", "auto, always or never")
	f.BoolVar(&a.ascii, "ascii", false, "words instead of signs and pictures")
	f.Var(refused{}, "passphrase", "")
	_ = f.MarkHidden("passphrase")
}

// refused is a flag that tells why it does not exist.
type refused struct{}

func (refused) String() string { return "" }
func (refused) Type() string   { return "refused" }
func (refused) Set(string) error {
	return control.Errorf(control.ExitUsage, "secret_on_command_line", "Use --passphrase-file FILE, SOTTO_PASSPHRASE_FILE, or type it when asked.",
		"a passphrase on the command line can be read by every user of this computer (ps); it was not used")
}

// run makes a command's function: it keeps the error for report and checks the flags that all commands share.
func (a *app) run(fn func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if a.err = a.checkGlobals(cmd.Flags()); a.err == nil {
			a.err = fn(cmd, args)
		}
		return nil
	}
}

func (a *app) checkGlobals(f *pflag.FlagSet) error {
	if a.jq != "" {
		a.json = true
	}
	if a.env.Getenv("SOTTO_NO_START") != "" {
		a.noStart = true
	}
	switch {
	case a.color != "auto" && a.color != "always" && a.color != "never":
		return usage("Use auto, always or never.", "--color %q", a.color)
	case a.home == "" && f.Changed("home"):
		return usage("Name a directory, or leave --home out for your own.", "--home is empty")
	case a.quiet && a.verbose:
		return usage("Choose one.", "--quiet and --verbose exclude each other")
	case a.timeout < 0:
		return usage("Use a time such as 20s or 2m.", "--timeout cannot be negative")
	}
	return a.compileJQ()
}

// colour puts --color into the environment, where fang's help looks for it.
func (a *app) colour(args []string) {
	for i, arg := range args {
		value, ok := strings.CutPrefix(arg, "--color=")
		if arg == "--color" && i+1 < len(args) {
			value, ok = args[i+1], true
		}
		if ok && value == "never" {
			_ = os.Setenv("NO_COLOR", "1")
		}
		if ok && value == "always" {
			_ = os.Setenv("CLICOLOR_FORCE", "1")
		}
	}
}

// wrapped is a line's end inside a paragraph; lines that begin with a space are lists.
var wrapped = regexp.MustCompile(`([^\n])\n([^\n ])`)

// guard gives every command the same manners: unknown words are usage errors that name the likely one, and paragraphs of
// help are broken where the terminal ends and not where the source does.
func guard(c *cobra.Command) {
	c.Long = wrapped.ReplaceAllString(c.Long, "$1 $2")
	if c.HasSubCommands() && c.HasParent() {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return unknownCommand(cmd, args[0])
		}
	}
	for _, sub := range c.Commands() {
		guard(sub)
	}
}

// helpForNothing refuses to explain a command that does not exist: the help of the one above it would look like an answer.
func (a *app) helpForNothing(root *cobra.Command) error {
	if !slices.Contains(a.env.Args, "--help") && !slices.Contains(a.env.Args, "-h") {
		return nil
	}
	c, rest, err := root.Find(a.env.Args)
	if err != nil || !c.HasSubCommands() {
		return nil
	}
	if word := firstWord(c, rest); word != "" && word != "-" && !looksLikeInvite(word) {
		return unknownCommand(c, word)
	}
	return nil
}

// firstWord is the first argument that is neither a flag nor a flag's value, if all flags before it are known.
func firstWord(c *cobra.Command, args []string) string {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			return arg
		}
		name, _, given := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		f := c.Flag(name)
		if f == nil && len(arg) == 2 {
			if f = c.Flags().ShorthandLookup(arg[1:]); f == nil {
				f = c.InheritedFlags().ShorthandLookup(arg[1:])
			}
		}
		if f == nil {
			return ""
		}
		if !given && f.NoOptDefVal == "" {
			i++
		}
	}
	return ""
}

func unknownCommand(c *cobra.Command, word string) error {
	var names []string
	for _, sub := range c.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Name())
		}
	}
	hint := "See: " + c.CommandPath() + " --help"
	if near := daemon.Nearest(word, names); near != "" {
		hint = "Did you mean: " + c.CommandPath() + " " + near
	}
	return usage(hint, "unknown command %q", line(word))
}

func flagError(c *cobra.Command, err error) error {
	var own *control.Error
	var wrong *pflag.InvalidValueError
	switch hasOwn := errors.As(err, &own); {
	case errors.As(err, &wrong) && hasOwn && own.Code == "usage":
		return usage(own.Hint, "--%s: %s", wrong.GetFlag().Name, own.Message)
	case hasOwn:
		return own
	case wrong != nil:
		return badValue(c, wrong)
	}
	hint := "See: " + c.CommandPath() + " --help"
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		if near := daemon.Nearest(unknown.GetSpecifiedName(), names); near != "" {
			hint = "Did you mean --" + near + "?"
		}
	}
	return usage(hint, "%s", line(err.Error()))
}

// badValue says what a flag wants, in place of what Go's parsers say.
func badValue(c *cobra.Command, e *pflag.InvalidValueError) error {
	hint, what := "See: "+c.CommandPath()+" --help", "cannot be used"
	switch e.GetFlag().Value.Type() {
	case "duration":
		hint, what = "Write it like 500ms, 20s or 10m.", "is not a time"
	case "int":
		hint, what = "Write it in digits.", "is not a whole number"
	case "bool":
		hint, what = "Write true or false, or leave the value out.", "is neither true nor false"
	}
	return usage(hint, "--%s: %q %s", e.GetFlag().Name, line(e.GetValue()), what)
}

// exactly, atLeast and atMost check the number of arguments, naming what is missing.
func exactly(names ...string) cobra.PositionalArgs { return between(len(names), len(names), names) }

func atMost(names ...string) cobra.PositionalArgs { return between(0, len(names), names) }

func between(least, most int, names []string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		hint := "Usage: " + c.UseLine()
		switch {
		case len(args) < least:
			return usage(hint, "%s is missing", names[len(args)])
		case len(args) > most:
			return usage(hint, "too many arguments, beginning with %q", line(args[most]))
		}
		return nil
	}
}

// usage is an error in how the program was called.
func usage(hint, format string, args ...any) error {
	return control.Errorf(control.ExitUsage, "usage", hint, format, args...)
}

// place is the home the flags and the environment name, and its config.
func (a *app) place() (daemon.Home, error) {
	if dir := a.homeDir(); dir != "" {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() || errors.Is(err, syscall.ENOTDIR) {
			return daemon.Home{}, usage("Name a directory with --home, or one that can be made.", "%s is no directory", line(dir))
		}
	}
	w := daemon.Where{Dir: a.homeDir(), Profile: a.profile, Socket: a.socket, Getenv: a.env.Getenv}
	if w.Profile == "" {
		w.Profile = a.env.Getenv("SOTTO_PROFILE")
	}
	return daemon.Locate(w)
}

func (a *app) homeDir() string {
	if a.home != "" {
		return a.home
	}
	return a.env.Getenv("SOTTO_HOME")
}

// tty reports whether a file is a terminal that people look at.
func tty(f *os.File) bool { return term.IsTerminal(f.Fd()) }

// mayAsk reports whether somebody is there to answer.
func (a *app) mayAsk() bool { return !a.noInput && tty(a.env.Stdin) && tty(a.env.Stderr) }

// say tells a person something that is no result.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		_, _ = fmt.Fprintln(a.env.Stderr, a.sameHome(fmt.Sprintf(format, args...)))
	}
}

// command finds the commands that a text tells people to run.
var command = regexp.MustCompile(`(^|[:(,;] ?|\n| (?:then|or) )sotto ([a-z]+)`)

// sameHome makes commands that a text names speak of the home that this one speaks of, so that they can be copied.
func (a *app) sameHome(text string) string {
	if a.home == "" && a.profile == "" {
		return text
	}
	where := ""
	if a.home != "" {
		where += " --home " + shellWord(a.home)
	}
	if a.profile != "" {
		where += " --profile " + shellWord(a.profile)
	}
	return command.ReplaceAllStringFunc(text, func(found string) string {
		if word := found[strings.LastIndexByte(found, ' ')+1:]; !a.commands[word] {
			return found
		}
		return strings.Replace(found, "sotto", "sotto"+where, 1)
	})
}

// shellWord quotes a word for a shell if it needs that.
func shellWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// report prints an error and returns the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return control.ExitDone
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, &control.Error{Code: "interrupted"})) {
		return control.ExitInterrupted
	}
	var e *control.Error
	if !errors.As(err, &e) {
		e = control.Errorf(control.ExitFailed, "failed", "Run it again with -v; the log is shown by: sotto config path", "%v", err)
	}
	if errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.EPIPE) {
		return control.ExitFailed // nobody reads any more
	}
	told := *e
	told.Message, told.Hint = shorten(e.Message), a.sameHome(e.Hint)
	if a.json {
		a.printError(&told)
		return told.Exit
	}
	_, _ = fmt.Fprintln(a.env.Stderr, "sotto:", text(told.Message))
	if told.Hint != "" {
		_, _ = fmt.Fprintln(a.env.Stderr, " ", text(told.Hint))
	}
	return told.Exit
}

// overlong is something quoted that nobody reads to its end.
var overlong = regexp.MustCompile(`"((?:[^"\\]|\\.){80})(?:[^"\\]|\\.){20,}"`)

// shorten cuts what a message quotes: a whole file may have been pasted where a name belongs.
func shorten(message string) string { return overlong.ReplaceAllString(message, `"$1…"`) }

// within bounds waiting by a time that people chose; 0 leaves it to the context.
func within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}
