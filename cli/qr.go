package cli

import (
	"encoding/base64"
	"fmt"
	"os"
	"strings"

	"rsc.io/qr"

	"sotto/control"
)

// inviteOptions say in which forms an invite is shown besides its link.
type inviteOptions struct {
	qr, copy bool
	png      string
}

// showInvite prints the link alone on its line, and what else was asked for.
func (a *app) showInvite(inv control.Invite, o inviteOptions) error {
	if _, err := fmt.Fprintln(a.env.Stdout, inv.Link); err != nil {
		return err
	}
	if o.copy {
		if !tty(a.env.Stderr) {
			return usage("Run it in a terminal.", "--copy goes through the terminal, and there is none")
		}
		_, _ = fmt.Fprintf(a.env.Stderr, "\x1b]52;c;%s\a", base64.StdEncoding.EncodeToString([]byte(inv.Link))) // OSC 52
		a.say("(copied, if your terminal allows it)")
	}
	if o.qr && !a.ascii {
		code, err := qr.Encode(inv.QR, qr.L)
		if err != nil {
			return fmt.Errorf("draw the QR code: %w", err)
		}
		if _, err := fmt.Fprint(a.env.Stdout, blocks(code)); err != nil {
			return err
		}
	}
	return a.keepQR(inv, o)
}

// keepQR writes the code as a picture; the file is as secret as the link.
func (a *app) keepQR(inv control.Invite, o inviteOptions) error {
	if o.png == "" {
		return nil
	}
	code, err := qr.Encode(inv.QR, qr.L)
	if err != nil {
		return fmt.Errorf("draw the QR code: %w", err)
	}
	f, err := os.OpenFile(o.png, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return control.Errorf(control.ExitFailed, "file_exists", "Choose a new file.", "cannot write the QR code: %v", err)
	}
	if _, err := f.Write(code.PNG()); err != nil {
		_ = f.Close()
		return fmt.Errorf("write the QR code: %w", err)
	}
	return f.Close()
}

// blocks draws two rows of a code in one line of text, dark on light with a margin of two, so that cameras read it on any theme.
func blocks(code *qr.Code) string {
	const margin = 2
	var out strings.Builder
	for y := -margin; y < code.Size+margin; y += 2 {
		out.WriteString("\x1b[30;107m")
		for x := -margin; x < code.Size+margin; x++ {
			switch upper, lower := code.Black(x, y), code.Black(x, y+1); {
			case upper && lower:
				out.WriteString("█")
			case upper:
				out.WriteString("▀")
			case lower:
				out.WriteString("▄")
			default:
				out.WriteString(" ")
			}
		}
		out.WriteString("\x1b[m\n")
	}
	return out.String()
}
