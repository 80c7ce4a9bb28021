package operator

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sotto/internal/clock"
)

func (a *app) clientsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "clients", Short: "Say who may have a box: vouchers and the list of allowed keys", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "Show allowed keys, vouchers not yet used, boxes in use", Args: cobra.NoArgs, Example: "  sotto-mailbox clients list --json",
			RunE: func(cmd *cobra.Command, _ []string) error { return a.listClients(cmd.Context()) }},
		&cobra.Command{Use: "allow KEY...", Short: "Let keys have a box in mode allowlist", Args: cobra.MinimumNArgs(1),
			Long:    "Let keys have a box in mode allowlist. KEY is the SHA-256 of a box's key in 64 hex digits, which its owner tells you.\nIt gets the full quota at once.",
			Example: "  sotto-mailbox clients allow 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
			RunE:    func(cmd *cobra.Command, args []string) error { return a.changeClients(cmd.Context(), orderAllow, args) }},
		&cobra.Command{Use: "deny KEY|VOUCHER...", Short: "Take keys off the list, or vouchers back", Args: cobra.MinimumNArgs(1),
			Long:    "Take keys off the list, or take back vouchers that nobody used yet. A box that is there stays, with its mail.",
			Example: "  sotto-mailbox clients deny K3QJ-7DWM-R2TV-XZ5A-HN4C",
			RunE:    func(cmd *cobra.Command, args []string) error { return a.changeClients(cmd.Context(), orderDeny, args) }},
		a.inviteCommand(),
	)
	return cmd
}

func (a *app) inviteCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "invite", Short: "Print vouchers to hand out", Args: cobra.NoArgs,
		Long:    "Print vouchers to hand out. Each makes one box, with the full quota at once, in modes invite and open. Only a hash of\nit is kept: it is not shown again.",
		Example: "  sotto-mailbox clients invite\n  sotto-mailbox clients invite -n 5 --days 90"}
	n := cmd.Flags().IntP("count", "n", 1, "how many")
	days := cmd.Flags().Int("days", 30, "how long they are good; 0: for ever")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *n < 1 || *n > 1000 || *days < 0 || *days > 36500 {
			return failed(exitUsage, "usage", "See: sotto-mailbox clients invite --help", fmt.Errorf("%d vouchers for %d days: want 1 to 1000, and 0 to 36500 days", *n, *days))
		}
		return a.invite(cmd.Context(), *n, *days)
	}
	return cmd
}

func (a *app) invite(ctx context.Context, n, days int) error {
	c, err := loadConfig(a.home)
	if err != nil {
		return err
	}
	var standing clients
	if err := a.give(ctx, order{Do: orderClients}, &standing); err != nil {
		return err
	}
	switch standing.Mode {
	case "allowlist", "closed":
		return failed(exitRefused, "mode", "Set mode = \"invite\" under [mailbox] in "+configName+" and restart, or: sotto-mailbox clients allow KEY",
			fmt.Errorf("a mailbox in mode %s honours no vouchers", standing.Mode))
	}
	o := order{Do: orderInvite}
	if days > 0 {
		o.Until = clock.FromEnv().Now().Add(time.Duration(days) * 24 * time.Hour).UTC().Truncate(time.Second)
	}
	for range n {
		code, err := newVoucher()
		if err != nil {
			return err
		}
		o.Codes = append(o.Codes, code)
	}
	if err := a.give(ctx, o, nil); err != nil {
		return err
	}
	at := a.mailboxAddress(ctx, c)
	if a.json {
		return json.NewEncoder(a.env.Stdout).Encode(map[string]any{"vouchers": o.Codes, "until": untilOrNil(o.Until), "mailbox": at})
	}
	for _, code := range o.Codes {
		if _, err := fmt.Fprintf(a.env.Stdout, "sotto mailboxes add %s --voucher %s\n", at, code); err != nil {
			return err
		}
	}
	until := "for ever"
	if days > 0 {
		until = "until " + day(o.Until)
	}
	_, err = fmt.Fprintf(a.env.Stderr, "Hand each line to one person: good for one box, %s. Take one back: sotto-mailbox clients deny CODE\n", until)
	return err
}

func untilOrNil(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}

// newVoucher is 100 bits, in groups that can be read out.
func newVoucher() (string, error) {
	b := make([]byte, 13)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	s := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)[:20]
	return strings.Join([]string{s[:4], s[4:8], s[8:12], s[12:16], s[16:]}, "-"), nil
}

// mailboxAddress is the best address to hand out, or a word in its place.
func (a *app) mailboxAddress(ctx context.Context, c Config) string {
	if s, err := a.askStatus(ctx); err == nil && len(s.Service) > 0 {
		return bestFirst(s.Service)[0]
	}
	if k, err := readKeys(a.home); err == nil {
		if list := c.addresses(c.Port, k.service); len(list) > 0 {
			return list[0]
		}
	}
	return "ADDRESS"
}

func (a *app) listClients(ctx context.Context) error {
	var c clients
	if err := a.give(ctx, order{Do: orderClients}, &c); err != nil {
		return err
	}
	if a.json {
		return json.NewEncoder(a.env.Stdout).Encode(c)
	}
	text := fmt.Sprintf("mode %s · %s · %s by work, %s by voucher or list\n", c.Mode, plural(c.Vouchers, "voucher not yet used", "vouchers not yet used"),
		plural(c.Open.Boxes, "box", "boxes"), count(uint64(c.Vouched.Boxes)))
	for _, key := range c.Allowed {
		text += "allowed " + key + "\n"
	}
	_, err := fmt.Fprint(a.env.Stdout, text)
	return err
}

// changeClients allows and denies. What is no key is taken for a voucher when it is denied.
func (a *app) changeClients(ctx context.Context, do string, args []string) error {
	keys, codes := order{Do: do}, order{Do: orderRevoke}
	for _, arg := range args {
		key, err := hex.DecodeString(arg)
		switch {
		case err == nil && len(key) == 32:
			keys.Keys = append(keys.Keys, key)
		case do == orderDeny:
			codes.Codes = append(codes.Codes, strings.ToUpper(arg))
		default:
			return failed(exitUsage, "usage", "Its owner sees it; vouchers need no keys: sotto-mailbox clients invite", fmt.Errorf("%.80q is no key: want 64 hex digits", arg))
		}
	}
	total := changed{}
	for _, o := range []order{keys, codes} {
		if len(o.Keys)+len(o.Codes) == 0 {
			continue
		}
		var c changed
		if err := a.give(ctx, o, &c); err != nil {
			return err
		}
		total.Changed += c.Changed
	}
	word := map[string]string{orderAllow: "allowed", orderDeny: "denied"}[do]
	return a.print(map[string]any{word: total.Changed, "unchanged": len(args) - total.Changed}, "%s: %d of %d, the others were so already · next: sotto-mailbox clients list\n", word, total.Changed, len(args))
}
