package daemon_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sotto/control"
	"sotto/daemon"
)

func TestAMissingConfigIsTheDefault(t *testing.T) {
	cfg, err := daemon.LoadConfig(filepath.Join(t.TempDir(), "config.toml"))
	if err != nil || !cfg.Network.MDNS || cfg.Store.Reserve != 128<<20 {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

func TestAConfigReadsBackWhatItShows(t *testing.T) {
	const text = `
[network]
bootstrap = ["/ip4/127.0.0.1/udp/4002/quic-v1/p2p/12D3KooWEB8XKQ5hY6rsjTbBNKxTBzr7gKyNqGBsQg3bdyvM7bE7"]
mdns = false
inner_port = 4100
[store]
reserve = "32 MiB"
[log]
level = "debug"
`
	cfg, err := daemon.ParseConfig("config.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	again, err := daemon.ParseConfig("config.toml", cfg.String())
	if err != nil || again.String() != cfg.String() || again.Network.MDNS || again.Store.Reserve != 32<<20 || len(again.Network.Bootstrap) != 1 {
		t.Errorf("shown as\n%s\nread back as %+v, %v", cfg, again, err)
	}
}

func TestEveryKeyIsKnown(t *testing.T) {
	keys := strings.Join(daemon.Keys(), " ")
	for _, want := range []string{"network.bootstrap", "network.listen", "network.mdns", "store.reserve", "log.level"} {
		if !strings.Contains(keys, want) {
			t.Errorf("%s is missing from %s", want, keys)
		}
	}
}

func TestABadConfigIsRefusedWithItsRemedy(t *testing.T) {
	for name, tc := range map[string]struct{ text, says, hint string }{
		"typo in a key":          {"[network]\nmnds = false", `"network.mnds"`, "network.mdns"},
		"typo in a section":      {"[netwrok]\nmdns = false", `"netwrok`, "network"},
		"unlike any key":         {"colour = 'red'", `"colour"`, "config show"},
		"not TOML":               {"[network", "line 1", "config show"},
		"wrong type":             {"[network]\nmdns = 'yes'", "line 2: network.mdns wants true or false", "config show"},
		"a list that is none":    {"[network]\nbootstrap = 'x'", "network.bootstrap wants a list of texts", "config show"},
		"a number in quotes":     {"[network]\ninner_port = '4'", "network.inner_port wants a whole number", "config show"},
		"a section that is none": {"network = 3", "network wants keys of its own", "config show"},
		"no such level":          {"[log]\nlevel = 'loud'", "write debug, info, warn or error", "config show"},
		"port zero less":         {"[network]\ninner_port = -1", "inner_port", "65535"},
		"port too large":         {"[network]\nfront_port = 65536", "front_port", "65535"},
		"one port twice":         {"[network]\ninner_port = 5\nfront_port = 5", "same", "Give each"},
		"address without a peer": {"[network]\nbootstrap = ['/ip4/1.2.3.4/udp/1/quic-v1']", "/p2p/", "volunteer prints"},
		"address that is none":   {"[network]\nrelays = ['1.2.3.4:5']", "1.2.3.4:5", "volunteer prints"},
		"listen on nonsense":     {"[network]\nlisten = ['nowhere']", "nowhere", "quic-v1"},
		"reserve zero":           {"[store]\nreserve = '0'", "store.reserve", "16 MiB"},
		"reserve negative":       {"[store]\nreserve = '-1 MiB'", "not a size", "config show"},
		"reserve overflowing":    {"[store]\nreserve = '9223372036854775807 GiB'", "not a size", "config show"},
		"reserve of no unit":     {"[store]\nballast = '128 megabytes'", "not a size", "config show"},
		"reserve beyond reason":  {"[store]\nballast = '65 GiB'", "store.ballast", "64 GiB"},
		"network of capitals":    {"[network]\nname = 'Test'", "network.name", "lower-case"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := daemon.ParseConfig("c.toml", tc.text)
			var e *control.Error
			for _, raw := range []string{"strconv", "slog", " toml: ", "int64", "destination"} {
				if err != nil && strings.Contains(err.Error(), raw) {
					t.Errorf("%v says %s", err, raw)
				}
			}
			if !errors.As(err, &e) || e.Exit != control.ExitUsage || !strings.Contains(e.Message, tc.says) || !strings.Contains(e.Hint, tc.hint) {
				t.Errorf("got %#v", err)
			}
		})
	}
}

func TestAConfigThatOthersMayChangeIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.LoadConfig(path); !errors.Is(err, &control.Error{Code: "bad_config"}) {
		t.Errorf("got %v", err)
	}
}

func TestTheNearestWordIsTheOneMeant(t *testing.T) {
	words := []string{"send", "status", "read", "requests"}
	for typed, want := range map[string]string{"sned": "send", "statsu": "status", "raed": "read", "zzzzzz": ""} {
		if got := daemon.Nearest(typed, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", typed, got, want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("[network]\nmdns = false\n[store]\nreserve = '32 MiB'")
	f.Add("[log]\nlevel = 'warn'")
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := daemon.ParseConfig("c", text)
		if err != nil {
			return
		}
		if _, err := daemon.ParseConfig("c", cfg.String()); err != nil {
			t.Fatalf("%q was read, but what it shows is refused: %v\n%s", text, err, cfg)
		}
	})
}
