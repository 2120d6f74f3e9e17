// Runs an ONNX file with onnxruntime: what it takes, what it gives, and how long that takes.
//
//   run_model MODEL.onnx [INPUT.bin] [THREADS]
//
// INPUT.bin: the first input's values as they lie in memory (float32, row by row). Without it, and
// for further inputs, all values are 0. Sizes that the file leaves open are 1.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kWarmUp = 10;
constexpr int kRuns = 50;
constexpr std::size_t kShown = 5;

std::size_t bytes_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return 1;
    default:
      throw std::runtime_error("an input of a type that this program doesn't know");
  }
}

// A tensor and the memory that it points to.
struct Input {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<char> data;
  Ort::Value value{nullptr};
};

Input zeros(Ort::Session& session, std::size_t place, const Ort::MemoryInfo& memory) {
  Ort::AllocatorWithDefaultOptions allocator;
  Ort::TypeInfo type = session.GetInputTypeInfo(place);
  auto info = type.GetTensorTypeAndShapeInfo();
  Input input;
  input.name = session.GetInputNameAllocated(place, allocator).get();
  input.shape = info.GetShape();
  std::size_t count = 1;
  for (int64_t& size : input.shape) {
    size = std::max<int64_t>(size, 1);  // -1 stands for a size that is open
    count *= static_cast<std::size_t>(size);
  }
  input.data.resize(count * bytes_of(info.GetElementType()));
  input.value = Ort::Value::CreateTensor(memory, input.data.data(), input.data.size(),
                                         input.shape.data(), input.shape.size(),
                                         info.GetElementType());
  return input;
}

void fill(Input& input, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  file.read(input.data.data(), static_cast<std::streamsize>(input.data.size()));
  if (!file || file.peek() != std::ifstream::traits_type::eof()) {
    throw std::runtime_error(path + " isn't " + std::to_string(input.data.size()) + " bytes long");
  }
}

std::string text(const std::vector<int64_t>& shape) {
  std::string words;
  for (int64_t size : shape) words += (words.empty() ? "" : "x") + std::to_string(size);
  return words;
}

void show(const std::string& name, const Ort::Value& value) {
  auto info = value.GetTensorTypeAndShapeInfo();
  std::cout << name << " " << text(info.GetShape());
  if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    const float* first = value.GetTensorData<float>();
    const std::size_t count = std::min(kShown, info.GetElementCount());
    for (std::size_t k = 0; k < count; ++k) std::cout << " " << first[k];
  }
  std::cout << "\n";
}

void run(int argc, char** argv) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "run_model");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(argc > 3 ? std::atoi(argv[3]) : 1);
  options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
  Ort::Session session(env, argv[1], options);
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

  std::vector<Input> inputs;
  for (std::size_t k = 0; k < session.GetInputCount(); ++k) {
    inputs.push_back(zeros(session, k, memory));
    std::cout << "takes " << inputs.back().name << " " << text(inputs.back().shape) << "\n";
  }
  if (argc > 2) fill(inputs.at(0), argv[2]);

  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> given;
  for (std::size_t k = 0; k < session.GetOutputCount(); ++k) {
    given.emplace_back(session.GetOutputNameAllocated(k, allocator).get());
  }
  std::vector<const char*> input_names, output_names;
  std::vector<Ort::Value> values;
  for (Input& input : inputs) {
    input_names.push_back(input.name.c_str());
    values.push_back(std::move(input.value));
  }
  for (const std::string& name : given) output_names.push_back(name.c_str());

  std::vector<Ort::Value> outputs;
  std::vector<double> times_ms;
  for (int k = 0; k < kWarmUp + kRuns; ++k) {
    const auto began = std::chrono::steady_clock::now();
    outputs = session.Run(Ort::RunOptions{nullptr}, input_names.data(), values.data(),
                          values.size(), output_names.data(), output_names.size());
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    if (k >= kWarmUp) times_ms.push_back(took.count());
  }
  for (std::size_t k = 0; k < outputs.size(); ++k) show("gives " + given[k], outputs[k]);
  std::sort(times_ms.begin(), times_ms.end());
  std::cout << "latency " << times_ms[times_ms.size() / 2] << " ms, half of " << kRuns
            << " runs faster\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: run_model MODEL.onnx [INPUT.bin] [THREADS]\n";
    return 2;
  }
  try {
    run(argc, argv);
  } catch (const std::exception& error) {  // Ort::Exception is one
    std::cerr << "run_model: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
