// Streams, events and graphs of include/cuda_runtime.h.
#include <algorithm>

#include "cuda_on_host/runtime.h"

using rfn::cuda_on_host::Runtime;

namespace {

template <class F>
cudaError_t call(F&& body) {
  return Runtime::instance().call(std::forward<F>(body));
}

}  // namespace

// ---- streams ------------------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return call([&](Runtime& r) {
    if (stream == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    *stream = new CUstream_st{r.next_number(), flags == cudaStreamDefault, {}};
    r.streams.insert(*stream);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call([&](Runtime& r) {
    if (r.streams.count(stream) == 0) return cudaErrorInvalidResourceHandle;
    const cudaError_t error = r.drain(stream);
    r.streams.erase(stream);
    delete stream;
    return error;
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&](Runtime& r) {
    if (!r.valid(stream)) return cudaErrorInvalidResourceHandle;
    if (Runtime::is_default(stream) ? r.capturing() : stream->capture != nullptr) return r.forbid_in_capture();
    return r.drain(stream);
  });
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return call([&](Runtime& r) {
    if (!r.valid(stream)) return cudaErrorInvalidResourceHandle;
    if (Runtime::is_default(stream)) return r.drain(stream);
    if (stream->capture != nullptr) return r.forbid_in_capture();
    r.step(stream);
    return r.sticky != cudaSuccess ? r.sticky : stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return call([&](Runtime& r) {
    return r.enqueue(stream, [=] {
      function(data);
      return cudaSuccess;
    });
  });
}

// ---- events -------------------------------------------------------------------------------------

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return call([&](Runtime& r) {
    if (event == nullptr) return cudaErrorInvalidValue;
    *event = new CUevent_st{r.next_number(), (flags & cudaEventDisableTiming) == 0, nullptr};
    r.events.insert(*event);
    return cudaSuccess;
  });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call([&](Runtime& r) {
    if (r.events.erase(event) == 0) return cudaErrorInvalidResourceHandle;
    delete event;
    return cudaSuccess;
  });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call([&](Runtime& r) {
    if (r.events.count(event) == 0 || !r.valid(stream)) return cudaErrorInvalidResourceHandle;
    const auto record = std::make_shared<CUevent_st::Record>();
    event->record = record;
    record->stream = Runtime::is_default(stream) ? nullptr : stream;
    if (!Runtime::is_default(stream) && stream->capture != nullptr) {
      record->capture = stream->capture;
      record->captured = stream->captured;
      return cudaSuccess;
    }
    return r.enqueue(stream, [record] {
      record->done = true;
      record->time = std::chrono::steady_clock::now();
      return cudaSuccess;
    });
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  return call([&](Runtime& r) {
    if (r.events.count(event) == 0 || !r.valid(stream)) return cudaErrorInvalidResourceHandle;
    const auto record = event->record;
    if (record == nullptr) return cudaSuccess;
    if (record->capture != nullptr) {
      if (Runtime::is_default(stream) || (stream->capture != nullptr && stream->capture != record->capture))
        return r.forbid_in_capture();
      stream->capture = record->capture;
      record->stream->joined = std::max(record->stream->joined, record->captured);
      return cudaSuccess;
    }
    return r.enqueue(stream, [record] {
      while (!record->done && Runtime::instance().step(record->stream)) {
      }
      return cudaSuccess;
    });
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call([&](Runtime& r) {
    if (r.events.count(event) == 0) return cudaErrorInvalidResourceHandle;
    if (event->record == nullptr || event->record->done) return cudaSuccess;
    if (event->record->capture != nullptr) return r.forbid_in_capture();
    r.step(event->record->stream);
    return r.sticky != cudaSuccess ? r.sticky : event->record->done ? cudaSuccess : cudaErrorNotReady;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&](Runtime& r) {
    if (r.events.count(event) == 0) return cudaErrorInvalidResourceHandle;
    if (event->record == nullptr) return cudaSuccess;
    if (event->record->capture != nullptr) return r.forbid_in_capture();
    while (!event->record->done && r.step(event->record->stream)) {
    }
    return r.sticky;
  });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  return call([&](Runtime& r) {
    if (r.events.count(start) == 0 || r.events.count(stop) == 0 || !start->timing || !stop->timing)
      return cudaErrorInvalidResourceHandle;
    if (start->record == nullptr || stop->record == nullptr) return cudaErrorInvalidResourceHandle;
    if (!start->record->done || !stop->record->done) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(stop->record->time - start->record->time).count();
    return cudaSuccess;
  });
}

// ---- graphs -------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return call([&](Runtime& r) {
    if (Runtime::is_default(stream)) return cudaErrorStreamCaptureUnsupported;
    if (!r.valid(stream) || stream->capture != nullptr) return cudaErrorInvalidResourceHandle;
    auto* graph = new CUgraph_st{r.next_number(), {}, stream};
    r.graphs.insert(graph);
    stream->capture = graph;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call([&](Runtime& r) {
    if (Runtime::is_default(stream) || !r.valid(stream) || stream->capture == nullptr ||
        stream->capture->origin != stream) {
      return cudaErrorInvalidResourceHandle;
    }
    CUgraph_st* captured = stream->capture;
    bool joined = true;
    for (const cudaStream_t other : r.streams) {
      if (other->capture != captured) continue;
      joined = joined && (other == stream || other->joined == other->captured);
      other->capture = nullptr;
      other->captured = other->joined = 0;
    }
    for (const cudaEvent_t event : r.events) {
      if (event->record != nullptr && event->record->capture == captured) event->record = nullptr;
    }
    *graph = captured;
    if (joined && !captured->invalid) return cudaSuccess;
    const cudaError_t error = captured->invalid ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined;
    r.graphs.erase(captured);
    delete captured;
    *graph = nullptr;
    return error;
  });
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call([&](Runtime& r) {
    if (!r.valid(stream)) return cudaErrorInvalidResourceHandle;
    const CUgraph_st* graph = Runtime::is_default(stream) ? nullptr : stream->capture;
    *status = graph == nullptr ? cudaStreamCaptureStatusNone
              : graph->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return call([&](Runtime& r) {
    if (r.graphs.count(graph) == 0) return cudaErrorInvalidResourceHandle;
    *executable = new CUgraphExec_st{r.next_number(), graph->operations};
    r.executables.insert(*executable);
    return cudaSuccess;
  });
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return call([&](Runtime& r) {
    if (r.executables.count(executable) == 0) return cudaErrorInvalidResourceHandle;
    return r.enqueue(stream, [operations = executable->operations] {
      for (const auto& operation : operations) {
        if (const cudaError_t error = operation(); error != cudaSuccess) return error;
      }
      return cudaSuccess;
    });
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call([&](Runtime& r) {
    if (r.graphs.erase(graph) == 0) return cudaErrorInvalidResourceHandle;
    delete graph;
    return cudaSuccess;
  });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return call([&](Runtime& r) {
    if (r.executables.erase(executable) == 0) return cudaErrorInvalidResourceHandle;
    delete executable;
    return cudaSuccess;
  });
}
