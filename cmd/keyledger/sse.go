package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// errStreamEnded says that the service or the network ended a stream of events.
var errStreamEnded = errors.New("the stream of events ended")

// readEvents reads a stream of Server-Sent Events (WHATWG HTML, section 9.2)
// and gives the data of each whole event to emit. It returns the id of the last
// one, for Last-Event-ID. The stream never ends by itself, so that it always
// returns an error but when emit has enough.
func readEvents(r io.Reader, id string, emit func(data []byte) (enough bool, err error)) (last string, enough bool, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var data []byte
	var has bool
	next := id
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return id, false, fmt.Errorf("%w: %w", errStreamEnded, err)
		}
		line = trimNewline(line)
		if len(line) == 0 {
			if has {
				if enough, err := emit(data); err != nil || enough {
					return next, enough, err
				}
			}
			data, has, id = nil, false, next
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "data":
			if has {
				data = append(data, '\n')
			}
			data, has = append(data, value...), true
		case "id":
			next = string(value)
		}
	}
}
