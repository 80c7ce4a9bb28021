//go:build !unix

package daemon

// Harden has nothing to do here: files inherit the access list of the user's profile.
func Harden() error { return nil }
