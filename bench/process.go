package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func sendProcess(ctx context.Context, _ options) (figure, error) { return figure{}, errors.New("x") }
func coldStart(ctx context.Context, o options) (figure, error)   { return figure{}, errors.New("x") }
func binarySize(ctx context.Context, _ options) (figure, error)  { return figure{}, errors.New("x") }
func idle(ctx context.Context, o options) (figure, error)        { return figure{}, errors.New("x") }

var _ = bufio.NewReader
var _ = json.Marshal
var _ = os.Args
var _ = exec.Command
var _ = filepath.Join
var _ = strings.Split
var _ = syscall.Kill
var _ = time.Now
var _ = fmt.Sprint
