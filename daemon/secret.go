package daemon

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"

	"sotto/control"
	"sotto/identity"
)

// ReadPassphrase takes a passphrase from a file that only this user can read, or from a pipe; a final line end is not part of it.
func ReadPassphrase(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, control.Errorf(control.ExitLocked, "passphrase_file", "Check --passphrase-file or SOTTO_PASSPHRASE_FILE.", "cannot read the passphrase file: %v", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("check the passphrase file: %w", err)
	}
	if info.Mode().IsRegular() && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, control.Errorf(control.ExitLocked, "passphrase_file_open", "Make it yours alone: chmod 600 "+path, "others may read the passphrase file %s (mode %04o)", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, identity.MaxPassphrase+3))
	if err != nil {
		return nil, fmt.Errorf("read the passphrase file: %w", err)
	}
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if err := identity.CheckPassphrase(text); err != nil {
		return nil, control.Errorf(control.ExitLocked, "bad_passphrase", "Put one line of 1 to 1024 bytes into it.", "the passphrase file %s: %v", path, err)
	}
	return text, nil
}
