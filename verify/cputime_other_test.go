//go:build !linux

package verify_test

import "time"

var began = time.Now()

func callerTime() time.Duration { return time.Since(began) }
func everyTime() time.Duration  { return time.Since(began) }
