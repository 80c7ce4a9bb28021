// Command sotto is the binary: it hands its arguments to package cli and returns its exit code.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"sotto/cli"
)

func main() { os.Exit(cli.Main(context.Background(), cli.FromOS(version()))) }

// version is what the go command recorded: the module's version, or that of the commit it was built from.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
