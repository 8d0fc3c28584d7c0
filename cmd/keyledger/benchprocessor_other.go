//go:build !unix

package main

import (
	"syscall"
	"time"
)

func processorTime() time.Duration { return 0 }

func apart() *syscall.SysProcAttr { return nil }
